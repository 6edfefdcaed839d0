"""Drawing for the report: one figure as an SVG in the page's font and colours, or as files for a paper."""

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

PALETTE = ("#3b8eea", "#2fa36b", "#e08a1e", "#9d5bd2", "#14a3a8", "#d9559c", "#a08030", "#6c7ee1",
           "#b8653c", "#6d8f2e", "#b98ae0", "#4f8a8b")  # fmt: skip
LABEL_PLACES = ((5, 5), (5, -5), (-5, 5), (-5, -5), (7, 0), (-7, 0), (0, 7), (0, -7))
INK = "#1f2328"  # of files; in the page it becomes currentColor, which matplotlib has not
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.12, "grid.color": INK,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip
FREE = -4  # a label that covers nothing has its four corners within the axes
DPI = 200


class Plot(NamedTuple):
    """A figure of the report; `legend`: colours of the lines that nothing in the figure names."""

    name: str
    title: str
    caption: str
    draw: Callable[[Figure], None]
    height: float = 3.1
    legend: Mapping[str, str] = MappingProxyType({})
    population: str = ""  # of one table only


def drawn(plot: Plot) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.3, plot.height), layout="constrained")
        plot.draw(figure)
    return figure


def inline(plot: Plot, figure: Figure) -> Markup:
    """An SVG to stand inside the page, that takes its font and text colour from it."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": plot.name}):  # ids must differ within the page
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer := io.StringIO(), format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue().replace(INK, "currentColor")
    return Markup(re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :]))


def save(plot: Plot, figure: Figure, folder: Path) -> list[Path]:
    """`<name>.svg` and `<name>.png`, dark on white, with a legend where nothing else names the lines."""
    paths = [folder / f"{plot.name}.{suffix}" for suffix in ("svg", "png")]
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "path", "svg.hashsalt": plot.name}):
        for name, color in plot.legend.items():
            figure.axes[0].plot([], [], color=color, label=name)
        if plot.legend:
            figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=DPI, facecolor="white", metadata=metadata)
    return paths


def place_labels(ax: Axes, labels: pd.DataFrame, points: pd.DataFrame) -> None:
    """Write each `text` beside its (`x`, `y`), where it covers no label and no point and is not cut off.

    Where there is no such place, it comes where it covers least if it is `needed`, and else not at all.
    """
    ax.figure.draw_without_rendering()  # settles the layout, so that the extents of the labels are final
    spots = ax.transData.transform(points)
    taken = [Bbox.from_extents(*(spot - 5), *(spot + 5)) for spot in spots]
    for label in labels.itertuples():
        texts = [
            ax.annotate(
                label.text, (label.x, label.y), place, textcoords="offset points",
                ha=("center", "left", "right")[np.sign(place[0])],
                va=("center", "bottom", "top")[np.sign(place[1])],
            ) for place in LABEL_PLACES
        ]  # fmt: skip
        boxes = [text.get_window_extent() for text in texts]
        crowding = [box.count_overlaps(taken) - ax.bbox.count_contains(box.corners()) for box in boxes]
        best, written = int(np.argmin(crowding)), label.needed or min(crowding) == FREE
        if written:
            taken.append(boxes[best])
        for place, text in enumerate(texts):
            if place != best or not written:
                text.remove()
