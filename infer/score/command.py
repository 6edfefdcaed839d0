"""`python -m infer score`."""

from rich.console import Console

from data.arguments import options_of
from infer.compare.measure import Measures, measure
from infer.report.terminal import terminal_table
from infer.score.options import Scoring


def score(args: list[str]) -> None:
    """Score finished predict runs: similarity, alignment and quality, with intervals."""
    [scoring] = options_of([Scoring], score, args)
    measures, images = Measures.load(scoring, scoring.device), scoring.training_images()
    measured = measure(measures, images, scoring.folders(), scoring.resolution(), scoring.cache)
    scoring.write(table := measured.table())
    Console().print(terminal_table(table))
    print("\n".join([*measured.notes(), *scoring.notes()]))
    print(f"scores of each image: samples.parquet in {', '.join(scoring.runs)}")
