"""`python -m infer detect`."""

from rich.console import Console

from data.arguments import options_of
from infer.detect import plots as detect_plots
from infer.detect.detection import Detection


def detect(args: list[str]) -> None:
    """Score prompts by published detectors of memorization; tell how well each tells two groups apart."""
    [detection] = options_of([Detection], detect, args)
    found = detection.measure()
    paths = [*found.write(), *detect_plots.save(found)]
    Console().print(detect_plots.table(found))
    print(found.told())
    print(f"scores, numbers and pictures: {', '.join(map(str, paths))}")
