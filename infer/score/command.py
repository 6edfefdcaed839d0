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
from infer.score.options import Scoring


def score(args: list[str]) -> None:
    """Score finished predict runs: similarity, alignment and quality, with intervals."""
    [scoring] = options_of([Scoring], score, args)
    measures = Measures(scoring, scoring.device)
    measured = measure(scoring, measures, scoring.folders(), scoring.resolution())
    table, out = measured.table(), scoring.out and Path(scoring.out)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".csv":
            write_atomically(out, lambda part: part.write_text(csv_text(table), encoding="utf-8"))
        else:
            write_table(table, out)
    Console().print(terminal_table(table))
    print("\n".join([*measured.notes(), *scoring.notes()]))
    print(f"scores of each image: samples.parquet in {', '.join(scoring.runs)}")
