"""Why a calibration found what it found: the curve that falls, and the first differences beside the gate."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.files import write_atomically
from infer.basin import sheet as look
from infer.calibrate.calibration import Calibrated

COLORS = {"memorized": look.COPIED, "ordinary": look.ORDINARY}


def draw_fall(ax: Axes, found: Calibrated, watch: str) -> None:
    """Each prompt's difference and the mean without guidance; the static transition."""
    name = "model outputs" if watch == "model_output" else "noise predictions"
    for group, curves in found.curves.items():
        ax.plot(found.timesteps, curves.T, color=COLORS[group], linewidth=0.6, alpha=0.25)
        label = f"{len(curves)} {group}, mean"
        ax.plot(found.timesteps, curves.mean(0), color=COLORS[group], linewidth=2.4, label=label, zorder=3)
    look.over_time(ax, f"Difference of the {name}, no guidance", "RMS(conditional − unconditional)")
    mark(ax, found.settings["timestep"], f"static transition {found.settings['timestep']:g}")
    ax.set_ylim(bottom=0)
    ax.legend(loc="upper right")


def draw_gate(ax: Axes, found: Calibrated) -> None:
    """How the first differences lie, and the gate."""
    groups = {group: values for group, values in found.firsts.items() if len(values)}
    bins = np.histogram_bin_edges(np.concatenate([*groups.values()]), bins=40)
    for group, values in groups.items():
        share = np.full(len(values), 1 / len(values))
        style = {"color": COLORS[group], "alpha": 0.55, "label": f"{len(values)} {group}"}
        ax.hist(values, bins, weights=share, **style)
    ax.set_title(f"First step, t = {found.timesteps[0]:g}")
    ax.set_xlabel("RMS of the difference of the noise predictions")
    ax.set_ylabel("share of images")
    mark(ax, found.settings["gate"], f"gate {found.settings['gate']:.4g}")
    ax.legend(loc="upper right")


def mark(ax: Axes, place: float, text: str) -> None:
    ax.axvline(place, color=look.EPSILON, linewidth=1.1, linestyle=(0, (4, 3)))
    ax.annotate(
        text, (place, 1), (0, 4), ax.get_xaxis_transform(), "offset points", ha="center", fontsize=8.5
    )


def save(found: Calibrated, watch: str, preset: Path) -> Path:
    """Draw what there is, beside the preset."""
    plots = [lambda ax: draw_fall(ax, found, watch)] if found.curves else []
    plots += [lambda ax: draw_gate(ax, found)] if found.firsts else []
    path = preset.with_suffix(".svg")
    with matplotlib.rc_context(look.STYLE | {"svg.hashsalt": "calibrate"}):
        figure = Figure(figsize=(5.4 * len(plots), 3.6), layout="constrained")
        for ax, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
            plot(ax)
        write_atomically(path, lambda part: figure.savefig(part, metadata={"Date": None}))
    return path
