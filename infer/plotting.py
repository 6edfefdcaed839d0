"""Colours and style of all figures, mid-tones that can be read on light and on dark; and parts of them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from data.files import write_atomically

INK = "#1f2328"  # text in files; in the page it becomes currentColor, which matplotlib does not have
COPY_COLOR, OTHER_COLOR = "#e5534b", "#8b909a"  # memorized, and not memorized
FIXED = {"none": COPY_COLOR, "base_model": OTHER_COLOR}
PALETTE = ("#3b8eea", "#2fa36b", "#e08a1e", "#9d5bd2", "#14a3a8", "#d9559c", "#a08030", "#6c7ee1",
           "#b8653c", "#6d8f2e", "#b98ae0", "#4f8a8b")  # fmt: skip
MORE = tuple(
    to_hex(matplotlib.colormaps[name].colors[shade + hue])
    for shade in (1, 2)
    for name, hues in (("tab20b", (0, 4, 8, 16)), ("tab20c", (0, 4, 8, 12)))  # no red, no grey
    for hue in hues
)
DPI = 200
FAINT = "#6e7781"
GROUP_COLORS = {"memorized": COPY_COLOR, "ordinary": OTHER_COLOR, "unknown": PALETTE[0]}
DIFFERENCE = "RMS(conditional − unconditional)"
DASHED, DOTTED = (0, (4, 3)), (0, (1, 2))
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.12, "grid.color": INK,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


FILE_STYLE = STYLE | {  # of figures that stand alone
    "svg.fonttype": "path", "savefig.dpi": DPI, "figure.facecolor": "white", "lines.linewidth": 1.6,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 23,
    "legend.frameon": False, "legend.fontsize": 8.5, "legend.borderpad": 0, "legend.borderaxespad": 0,
    "legend.handlelength": 1.3, "legend.handletextpad": 0.5, "legend.columnspacing": 1.4,
}  # fmt: skip


def colors_of(names: list[str]) -> dict[str, str]:
    """A colour per mitigation, in the order of the names; from the 29th on they come again."""
    others = [name for name in names if name not in FIXED]
    return FIXED | dict(zip(others, cycle((*PALETTE, *MORE)), strict=False))


def save(draw: Callable[[], Figure], *paths: Path) -> list[Path]:
    """Draw a figure in FILE_STYLE and write it to each path (.svg or .png); the paths."""
    with matplotlib.rc_context(FILE_STYLE | {"svg.hashsalt": paths[0].stem}):
        figure = draw()
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            metadata = {"Date": None} if path.suffix == ".svg" else None
            write_atomically(path, lambda part, metadata=metadata: figure.savefig(part, metadata=metadata))
    return list(paths)


def timestep_axes(ax: Axes, title: str, ylabel: str) -> None:
    """Timesteps from 1000 down to 0 on the x axis."""
    ax.set(title=title, xlabel="timestep", ylabel=ylabel, xlim=(1000, 0))
    ax.grid(True)


def second_axis(ax: Axes, color: str) -> Axes:
    """An axis on the right for curves of this colour, drawn behind those of `ax`."""
    second = ax.twinx()
    second.tick_params(axis="y", colors=color)
    second.spines["right"].set(visible=True, color=color)
    ax.set_zorder(1)
    ax.patch.set_visible(False)
    return second


def legend(ax: Axes, handles: Sequence[Line2D] | None = None) -> None:
    """A legend above the axes, at the right of the title."""
    height = ax.get_position().height * ax.figure.get_figheight()  # inches
    options = {} if handles is None else {"handles": handles}
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1 + 0.27 / height), ncols=2, **options)


def same_height(axes: Sequence[Axes]) -> None:
    """Give all axes one y range, from 0."""
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(0, top)


def band(ax: Axes, x: Sequence[float], values: np.ndarray, color: str, label: str) -> None:
    """The mean of the rows, (N, len(x)), with the 10-90 % band."""
    low, high = np.nanquantile(values, (0.1, 0.9), axis=0)
    ax.plot(x, np.nanmean(values, 0), color=color, label=label)
    ax.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)


def thin_and_mean(ax: Axes, x: Sequence[float], values: np.ndarray, color: str, label: str) -> None:
    """Every row, (N, len(x)), as a thin line, and the mean as a thick one."""
    ax.plot(x, values.T, color=color, linewidth=0.7, alpha=0.3)
    ax.plot(x, np.nanmean(values, 0), color=color, linewidth=2.4, label=label, zorder=3)


def share_histogram(ax: Axes, groups: Mapping[str, np.ndarray], bins: int) -> None:
    """The share of each group's values by bin; empty groups are left out."""
    groups = {group: values for group, values in groups.items() if len(values)}
    edges = np.histogram_bin_edges(np.concatenate([*groups.values()]), bins)
    for group, values in groups.items():
        label, shares = f"{len(values)} {group}", np.full(len(values), 1 / len(values))
        ax.hist(values, edges, weights=shares, color=GROUP_COLORS[group], alpha=0.55, label=label)


def mark(
    ax: Axes, x: float, text: str, color: str = INK, align: str = "center", linestyle: tuple = DASHED
) -> None:
    """A vertical line with a text above it."""
    ax.axvline(x, color=color, linewidth=1.1, linestyle=linestyle)
    offset = {"left": 3, "center": 0, "right": -3}[align], 4
    ax.annotate(
        text, (x, 1), offset, ax.get_xaxis_transform(), "offset points", color=color, fontsize=8.5, ha=align
    )
