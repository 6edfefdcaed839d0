"""The commands that need no mitigation: they look at a model, or at images that are there."""

from pathlib import Path

from data.arguments import options_of


def score(args: list[str]) -> None:
    """Score predict runs that are there already: similarity, alignment and quality, with intervals."""
    from rich.console import Console

    from infer.compare.measure import Measures, measure
    from infer.report.terminal import terminal_table
    from infer.score.options import Scoring

    [scoring] = options_of([Scoring], score, args, lists=("--runs", "--training"))
    measures, images = Measures.load(scoring, scoring.device), scoring.training_images()
    measured = measure(measures, images, scoring.folders(), scoring.side(), scoring.cache)
    scoring.write(table := measured.table())
    Console().print(terminal_table(table))
    print("\n".join([*measured.notes(), *scoring.notes()]))
    print(f"scores of each image: samples.parquet in {', '.join(scoring.runs)}")


def detect(args: list[str]) -> None:
    """Score prompts by published detectors of memorization; tell how well each tells two groups apart."""
    from rich.console import Console

    from infer.detect import plots as detect_plots
    from infer.detect.detection import Detection

    [detection] = options_of([Detection], detect, args)
    found = detection.measure()
    paths = [*found.write(), *detect_plots.save(found)]
    Console().print(detect_plots.table(found))
    print(found.told())
    print(f"scores, numbers and pictures: {', '.join(map(str, paths))}")


def report(args: list[str]) -> None:
    """Write the page of a comparison folder again."""
    from infer.report.page import write_report

    usage = "usage: python -m infer report COMPARISON_FOLDER"
    if args in (["-h"], ["--help"]):
        print(f"{usage}\n\n{report.__doc__}")
        return
    if len(args) != 1 or args[0].startswith("-"):
        raise ValueError(usage)
    print(f"report: {write_report(Path(args[0])).resolve()}")
