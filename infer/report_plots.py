"""The plots of the report: SVG to stand inside the page, in its font and colours."""

import io
import re
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

PALETTE = ("#3b8eea", "#2fa36b", "#e08a1e", "#9d5bd2", "#14a3a8", "#d9559c", "#a08030", "#6c7ee1",
           "#b8653c", "#6d8f2e", "#b98ae0", "#4f8a8b")  # fmt: skip
LABEL_PLACES = ((7, 0), (-7, 0), (0, 7), (0, -7), (5, 5), (5, -5), (-5, 5), (-5, -5))
MARKERS = {"none": "s", "base_model": "D"}
INK = "#123456"  # stands for the page's text colour while matplotlib, which has no currentColor, draws
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.12, "grid.color": INK,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def colors_of(names: list[str]) -> dict[str, str]:
    """One mid-tone per mitigation, the same in every plot, readable on light and on dark."""
    fixed = {"none": "#e5534b", "base_model": "#8b909a"}
    others = [name for name in names if name not in fixed]
    return fixed | {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(others)}


def draw(plot: Callable[..., None], *data, height: float = 3.1) -> Markup:
    """A plot as an inline SVG that takes its font and text colour from the page."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": plot.__name__}):  # ids must differ within the page
        figure = Figure(figsize=(4.3, height), layout="constrained")
        plot(figure.subplots(), *data)
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer := io.StringIO(), format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue().replace(INK, "currentColor")
    return Markup(re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :]))


def draw_scatter(ax: Axes, comparison: pd.DataFrame, colors: dict[str, str]) -> None:
    x, y = "similarity_own_mean", "clip_score_mean"
    points = comparison.reindex(columns=comparison.columns.union([x, y])).dropna(subset=[x, y])
    for row in points.to_dict("records"):
        color, marker = colors[row["mitigation"]], MARKERS.get(row["mitigation"], "o")
        ax.plot(row[x], row[y], marker, color=color, markeredgewidth=0)
        ax.hlines(row[y], row.get(f"{x}_low", row[x]), row.get(f"{x}_high", row[x]), color=color, alpha=0.6)
        ax.vlines(row[x], row.get(f"{y}_low", row[y]), row.get(f"{y}_high", row[y]), color=color, alpha=0.6)
    ax.set(xlabel="similarity to own training image", ylabel="CLIP score")
    ax.margins(0.16)
    ax.grid(True)
    ax.figure.draw_without_rendering()  # settles the layout, so that the extents of the labels are final
    spots = ax.transData.transform(points[[x, y]])
    taken = [Bbox.from_extents(*(spot - 5), *(spot + 5)) for spot in spots]
    for row in points.to_dict("records"):
        texts = [
            ax.annotate(
                row["mitigation"], (row[x], row[y]), place, textcoords="offset points",
                ha=("center", "left", "right")[np.sign(place[0])],
                va=("center", "bottom", "top")[np.sign(place[1])],
            ) for place in LABEL_PLACES
        ]  # fmt: skip
        boxes = [text.get_window_extent() for text in texts]
        crowding = [box.count_overlaps(taken) - ax.bbox.count_contains(box.corners()) for box in boxes]
        kept = int(np.argmin(crowding))  # the first place where the name covers nothing and is not cut off
        taken.append(boxes[kept])
        for text in texts[:kept] + texts[kept + 1 :]:
            text.remove()


def draw_curves(
    ax: Axes, samples: dict[str, pd.DataFrame], traces: dict[str, pd.DataFrame], colors: dict[str, str]
) -> None:
    for name, trace in traces.items():
        steps = trace.groupby("timestep")["difference_rms"]
        measured = steps.count() * 2 >= len(samples[name])  # over few images it would be a mean of others
        mean = steps.mean().where(measured)
        ax.plot(mean.index, mean, color=colors[name])
        if name in ("none", "dtp"):
            low, high = (steps.quantile(share).where(measured) for share in (0.1, 0.9))
            ax.fill_between(mean.index, low, high, color=colors[name], alpha=0.15, linewidth=0)
        transition, curve = samples[name]["transition_timestep"].median(), mean.dropna()
        if pd.notna(transition) and len(curve):
            height = np.interp(transition, curve.index, curve)
            ax.plot(transition, height, "o", color=colors[name], markersize=7, markeredgewidth=0)
    ax.set(xlabel="timestep", ylabel="RMS(conditional − unconditional)", xlim=(1000, 0))
    ax.set_ylim(bottom=0)
    ax.grid(True)


def draw_distributions(ax: Axes, samples: dict[str, pd.DataFrame], colors: dict[str, str]) -> None:
    similarities = {name: frame["similarity_own"].dropna() for name, frame in samples.items()}
    everything = pd.concat(similarities)
    edges = np.linspace(min(0, everything.min()), max(1, everything.max()), 41)
    ax.axvline(0.5, color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (2, 3)))
    for row, (name, values) in enumerate(similarities.items()):
        counts, _ = np.histogram(values, edges)
        tops = row - 0.8 * counts / max(1, counts.max())
        ax.stairs(tops, edges, baseline=row, fill=True, color=colors[name])
        ax.vlines(values.mean(), row - 0.9, row, color=INK, linewidth=1.2)
    ax.set(xlabel="similarity to own training image", ylim=(len(samples) - 0.8, -1))
    ax.set_yticks(np.arange(len(samples)) - 0.3, list(samples))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
