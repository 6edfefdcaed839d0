"""The figure behind a calibration: the curve that falls, and the first differences with the gate."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infer import plotting
from infer.calibrate.measure import Calibrated
from infer.denoising.curves import SPACES


def draw_fall(ax: Axes, result: Calibrated, watch: str) -> None:
    """The difference of every image and the mean, without guidance; the static transition."""
    for group, curves in result.curves.items():
        label = f"{len(curves)} {group}, mean"
        plotting.thin_and_mean(ax, result.timesteps, curves, plotting.GROUP_COLORS[group], label)
    plotting.timestep_axes(ax, f"Difference of the {SPACES[watch]}s, no guidance", plotting.DIFFERENCE)
    plotting.mark(ax, result.settings["timestep"], f"static transition {result.settings['timestep']:g}")
    ax.set_ylim(bottom=0)
    ax.legend(loc="upper right")


def draw_gate(ax: Axes, result: Calibrated) -> None:
    """The distribution of the first differences, and the gate."""
    plotting.share_histogram(ax, result.firsts, 40)
    title = f"First step, t = {result.first_timestep:g}"
    ax.set(title=title, xlabel="RMS of the difference of the noise predictions", ylabel="share of images")
    plotting.mark(ax, result.settings["gate"], f"gate {result.settings['gate']:.4g}")
    ax.legend(loc="upper right")


def save_figure(result: Calibrated, watch: str, path: Path) -> Path:
    """Draw what was measured, and write it; the path."""
    plots = [lambda ax: draw_fall(ax, result, watch)] if result.curves else []
    plots += [lambda ax: draw_gate(ax, result)] if result.firsts else []

    def draw() -> Figure:
        figure = Figure(figsize=(5.4 * len(plots), 3.6), layout="constrained")
        for ax, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
            plot(ax)
        return figure

    return plotting.save(draw, path)[0]
