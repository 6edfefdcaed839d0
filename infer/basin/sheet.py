"""A page of images and charts that is laid out in inches."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL.Image import Image

from infer.metrics.similarity import COPY_THRESHOLD
from infer.plotting import COPY_COLOR, DPI, FAINT, OTHER_COLOR, PALETTE

NO_COPY_COLOR = PALETTE[0]
SIZE, GAP, LINE = 0.96, 0.14, 0.19  # of an image (192 pixels), between two images, and a line of small text
ROW = SIZE + LINE + GAP


class Sheet:
    """A page; positions are in inches from its top left corner."""

    def __init__(self, width: float, height: float, left: float, title: str, subtitle: str):
        self.figure, self.width, self.height = Figure(figsize=(width, height)), width, height
        self.text(left, 0.25, title, fontsize=14, weight="bold")
        self.text(left, 0.6, subtitle, color=FAINT)

    def text(self, left: float, top: float, text: str, **options) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, text, **{"va": "top"} | options)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def image(
        self, left: float, top: float, image: Image, size: float = SIZE, frame: str | None = None
    ) -> None:
        """Draw an image pixel by pixel, smoothed where it has more pixels than the page."""
        ax = self.axes(left, top, size, size)
        ax.imshow(np.asarray(image), interpolation="nearest" if image.width <= size * DPI else "antialiased")
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(visible=True, color=frame or FAINT, linewidth=2.2 if frame else 0.6)

    def generated(self, left: float, top: float, image: Image, similarity: float) -> None:
        """Draw an image with its similarity below, and the frame's colour by whether it is a copy."""
        color = color_of(similarity)
        self.image(left, top, image, frame=color)
        text = "no value" if math.isnan(similarity) else with_minus(f"{similarity:.2f}")
        self.text(left + SIZE / 2, top + SIZE + 0.06, text, ha="center", color=color, fontsize=8.5)

    def frame_legend(self, right: float) -> None:
        """What the colours of the frames mean, at the height of the title."""
        colors = {f"copy: similarity above {COPY_THRESHOLD:g}": COPY_COLOR, "no copy": NO_COPY_COLOR}
        handles = [
            Line2D([], [], marker="s", linestyle="", markerfacecolor="none", color=color, markeredgewidth=1.8)
            for color in colors.values()
        ]
        anchor = 1 - right / self.width, 1 - 0.3 / self.height
        self.figure.legend(handles, colors, ncols=2, loc="upper right", bbox_to_anchor=anchor)


def color_of(similarity: float) -> str:
    """Red for a copy, blue for none, grey where the similarity is undefined."""
    if math.isnan(similarity):
        return OTHER_COLOR
    return COPY_COLOR if similarity > COPY_THRESHOLD else NO_COPY_COLOR


def with_minus(number: str) -> str:
    return number.replace("-", "−")
