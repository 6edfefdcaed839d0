"""`python -m infer detect`."""

from rich.console import Console

from data.arguments import options_of
from infer.detect.measure import measure
from infer.detect.options import Detection
from infer.detect.plots import save_figure


def detect(args: list[str]) -> None:
    """Score prompts by published detectors of memorization; show how well each tells two groups apart."""
    [options] = options_of([Detection], detect, args)
    detected = measure(options)
    paths = [*detected.write(), *save_figure(detected)]
    Console().print(detected.table())
    print("\n".join(detected.summary_lines()))
    print(f"scores, numbers and figures: {', '.join(map(str, paths))}")
