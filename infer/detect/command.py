"""`python -m infer detect`."""

from rich.console import Console

from data.arguments import options_of
from infer.detect.measure import measure
from infer.detect.options import Detection
from infer.detect.plots import save_figure
from infer.detect.ranking import ranking_table, write_ranking


def detect(args: list[str]) -> None:
    """Score prompts by published detectors of memorization: how well each works, or which are suspicious."""
    [options] = options_of([Detection], detect, args)
    detected = measure(options)
    paths = [*detected.write(), *save_figure(detected)]
    Console().print(detected.table())
    if detected.counts()["unknown"]:
        paths.append(write_ranking(detected))
        Console().print(ranking_table(detected))
    print("\n".join(detected.summary_lines()))
    print(f"scores, numbers and figures: {', '.join(map(str, paths))}")
