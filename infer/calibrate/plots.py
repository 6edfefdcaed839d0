"""The figure behind a calibration: the curve that falls, and the values with the gate or threshold."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infer import plotting
from infer.calibrate.measure import LIMITS, Calibrated
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


def draw_limit(ax: Axes, result: Calibrated) -> None:
    """The distribution of the values of the images, and the gate or threshold."""
    [name] = LIMITS.keys() & result.settings.keys()
    plotting.share_histogram(ax, result.scores, 40)
    ax.set(title=f"Where the {name} is", xlabel=LIMITS[name], ylabel="share of images")
    plotting.mark(ax, result.settings[name], f"{name} {result.settings[name]:.4g}")
    ax.legend(loc="upper right")


def save_figure(result: Calibrated, watch: str, path: Path) -> Path:
    """Draw what was measured, and write it; the path."""
    plots = [lambda ax: draw_fall(ax, result, watch)] if result.curves else []
    plots += [lambda ax: draw_limit(ax, result)] if result.scores else []

    def draw() -> Figure:
        figure = Figure(figsize=(5.4 * len(plots), 3.6), layout="constrained")
        for ax, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
            plot(ax)
        return figure

    return plotting.save(draw, path)[0]
