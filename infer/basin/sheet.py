"""What the pictures of `infer.basin.plots` share: a page laid out in inches, its style, images and axes."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL.Image import Image

from infer.metrics.similarity import COPY_THRESHOLD
from infer.report.style import COPY_COLOR, INK, OTHER_COLOR, PALETTE
from infer.report.style import STYLE as REPORT

TEXT, FAINT = "#1f2328", "#6e7781"
COPIED, FREE, ORDINARY = COPY_COLOR, PALETTE[0], OTHER_COLOR
EPSILON, MODEL = TEXT, PALETTE[3]  # curves in the two spaces
DPI = 200
STYLE = {key: TEXT if value == INK else value for key, value in REPORT.items()} | {
    "svg.fonttype": "path", "savefig.dpi": DPI, "figure.facecolor": "white", "lines.linewidth": 1.6,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 23,
    "legend.frameon": False, "legend.fontsize": 8.5, "legend.borderpad": 0, "legend.borderaxespad": 0,
    "legend.handlelength": 1.3, "legend.handletextpad": 0.5, "legend.columnspacing": 1.4,
}  # fmt: skip
SIDE, GAP, LINE = 0.96, 0.14, 0.19  # of an image (192 pixels), between two images, and a line of small text
ROW = SIDE + LINE + GAP


class Sheet:
    """A page; places are in inches from its top left corner."""

    def __init__(self, width: float, height: float, left: float, title: str, about: str):
        self.figure, self.width, self.height = Figure(figsize=(width, height)), width, height
        self.text(left, 0.25, title, fontsize=14, weight="bold")
        self.text(left, 0.6, about, color=FAINT)

    def text(self, left: float, top: float, text: str, **options) -> None:
        options = {"va": "top"} | options
        self.figure.text(left / self.width, 1 - top / self.height, text, **options)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def image(
        self, left: float, top: float, image: Image, side: float = SIDE, frame: str | None = None
    ) -> None:
        """Its pixels as they are, unless it has more than are drawn."""
        ax = self.axes(left, top, side, side)
        ax.imshow(np.asarray(image), interpolation="nearest" if image.width <= side * DPI else "antialiased")
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(visible=True, color=frame or FAINT, linewidth=2.2 if frame else 0.6)

    def generated(self, left: float, top: float, image: Image, similarity: float) -> None:
        """Framed by whether it is a copy, with the similarity below."""
        color = color_of(similarity)
        self.image(left, top, image, frame=color)
        words = "failed" if math.isnan(similarity) else signed(f"{similarity:.2f}")
        self.text(left + SIDE / 2, top + SIDE + 0.06, words, ha="center", color=color, fontsize=8.5)

    def key(self, right: float) -> None:
        """What the colours of the frames mean, at the height of the title."""
        marks = {f"copy: similarity above {COPY_THRESHOLD:g}": COPIED, "no copy": FREE}
        handles = [
            Line2D([], [], marker="s", linestyle="", markerfacecolor="none", color=color, markeredgewidth=1.8)
            for color in marks.values()
        ]
        place = {"loc": "upper right", "bbox_to_anchor": (1 - right / self.width, 1 - 0.3 / self.height)}
        self.figure.legend(handles, marks, ncols=2, **place)


def color_of(similarity: float) -> str:
    if math.isnan(similarity):
        return ORDINARY
    return COPIED if similarity > COPY_THRESHOLD else FREE


def signed(number: str) -> str:
    return number.replace("-", "−")


def over_time(ax: Axes, title: str, ylabel: str) -> None:
    ax.set(title=title, xlabel="timestep", ylabel=ylabel, xlim=(1000, 0))
    ax.grid(True)


def second_axis(ax: Axes, color: str) -> Axes:
    """One on the right, for curves of this colour, behind the first."""
    other = ax.twinx()
    other.tick_params(axis="y", colors=color)
    other.spines["right"].set(visible=True, color=color)
    ax.set_zorder(1)
    ax.patch.set_visible(False)
    return other


def legend(ax: Axes, handles: Sequence[Line2D] | None = None, columns: int = 2) -> None:
    """Above the axes, at the right of the title."""
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": columns}
    drawn = ax.legend(**place) if handles is None else ax.legend(handles=handles, **place)
    drawn.set_bbox_to_anchor((1, 1 + 0.27 / height_of(ax)))


def height_of(ax: Axes) -> float:
    """In inches."""
    return ax.get_position().height * ax.figure.get_figheight()


def from_zero(axes: Sequence[Axes]) -> None:
    """The same height for all, from 0."""
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(0, top)


def band(ax: Axes, x: Sequence[float], values: np.ndarray, color: str, name: str) -> None:
    """The mean over the prompts, with the 10-90 % band."""
    low, high = np.nanquantile(values, (0.1, 0.9), axis=0)
    ax.plot(x, np.nanmean(values, 0), color=color, label=name)
    ax.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
