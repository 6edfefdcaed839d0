"""Figures as SVG in the page's font and colours, or as files for a paper; labels that do not overlap."""

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

from infer.plotting import INK, STYLE

LABEL_OFFSETS = ((5, 5), (5, -5), (-5, 5), (-5, -5), (7, 0), (-7, 0), (0, 7), (0, -7))
FREE = -4  # a label that covers nothing has its four corners within the axes
DPI = 200


class Plot(NamedTuple):
    """A figure of the report.

    Attributes:
        name: stem of its files.
        title: above it.
        caption: what its marks mean.
        draw: draws into a figure.
        height: in inches.
        legend: colours of lines that have no label in the figure.
        population: of the one table that it belongs to; "": of all.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Figure], None]
    height: float = 3.1
    legend: Mapping[str, str] = MappingProxyType({})
    population: str = ""


def drawn(plot: Plot) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.3, plot.height), layout="constrained")
        plot.draw(figure)
    return figure


def inline(plot: Plot, figure: Figure) -> Markup:
    """An SVG to embed in the page, whose font and text colour it takes."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": plot.name}):  # ids must differ within the page
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer := io.StringIO(), format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue().replace(INK, "currentColor")
    return Markup(re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :]))


def save(plot: Plot, figure: Figure, folder: Path) -> list[Path]:
    """Write `<name>.svg` and `<name>.png`, dark on white, with a legend for lines without labels."""
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
    """Write each `text` beside its (`x`, `y`) so that it covers no label and no point and is not cut off.

    Where that is impossible, a `needed` text is written where it covers least, and others are left out.
    """
    ax.figure.draw_without_rendering()  # settles the layout, so that the extents of the labels are final
    spots = ax.transData.transform(points)
    taken = [Bbox.from_extents(*(spot - 5), *(spot + 5)) for spot in spots]
    for label in labels.itertuples():
        texts = [
            ax.annotate(
                label.text, (label.x, label.y), offset, textcoords="offset points",
                ha=("center", "left", "right")[np.sign(offset[0])],
                va=("center", "bottom", "top")[np.sign(offset[1])],
            ) for offset in LABEL_OFFSETS
        ]  # fmt: skip
        boxes = [text.get_window_extent() for text in texts]
        crowding = [box.count_overlaps(taken) - ax.bbox.count_contains(box.corners()) for box in boxes]
        best, written = int(np.argmin(crowding)), label.needed or min(crowding) == FREE
        if written:
            taken.append(boxes[best])
        for index, text in enumerate(texts):
            if index != best or not written:
                text.remove()
