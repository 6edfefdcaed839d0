"""`python -m infer score`."""

from pathlib import Path

from rich.console import Console

from data.arguments import options_of
from data.files import write_atomically
from data.table_files import csv_text
from infer.compare.measures import Measures
from infer.compare.results import measure
from infer.predict.run_folder import write_table
from infer.report.terminal import terminal_table
from infer.score.images import write_rows
from infer.score.options import Scoring
from infer.score.page import write_images_page


def score(args: list[str]) -> None:
    """Score finished predict runs, or images of other tools: similarity, alignment and quality."""
    [scoring] = options_of([Scoring], score, args)
    unnamed = 0
    if scoring.images:
        table = scoring.prompts and Path(scoring.prompts)
        unnamed = write_rows(Path(scoring.images), table, Path(scoring.out))
    measures = Measures(scoring, scoring.device)
    measured = measure(scoring, measures, scoring.folders(), scoring.resolution())
    table, out = measured.table(), scoring.out and Path(scoring.out)
    if out and not scoring.images:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".csv":
            write_atomically(out, lambda part: part.write_text(csv_text(table), encoding="utf-8"))
        else:
            write_table(table, out)
    Console().print(terminal_table(table))
    notes = [*measured.notes(), *scoring.notes()]
    if unnamed:
        notes.append(f"{unnamed} images are not in {scoring.prompts}: their file names are their prompts.")
    print("\n".join(notes))
    if scoring.images:
        print(f"page: {write_images_page(scoring, Path(scoring.images), measured, notes, out).resolve()}")
    print(f"scores of each image: samples.parquet in {', '.join(scoring.runs)}")
