"""The figure of `python -m infer detect`: ROC curves, and how the scores of each group are distributed."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from infer import plotting
from infer.detect.detectors import DETECTORS
from infer.detect.summary import LABELS, Detected
from infer.metrics.roc import auc, roc
from infer.plotting import PALETTE

COLORS = dict(zip(DETECTORS, PALETTE, strict=False))


def draw_roc(ax: Axes, detected: Detected) -> None:
    """The ROC curve and the AUC of every detector, the best first."""
    groups = ("memorized", "ordinary")
    scores = {name: [detected.scores(name, group) for group in groups] for name in detected.names}
    for name in sorted(scores, key=lambda name: -auc(*scores[name])):
        label = f"{auc(*scores[name]):.3f}  {DETECTORS[name].title}"
        ax.plot(*roc(*scores[name]), color=COLORS[name], label=label, clip_on=False)
    ax.plot([0, 1], [0, 1], color=plotting.FAINT, linewidth=0.8, linestyle=plotting.DOTTED)
    ax.set(title="ROC", xlim=(0, 1), ylim=(0, 1), xlabel="ordinary prompts flagged")
    ax.set_ylabel("memorized prompts flagged")
    ax.grid(True)
    if len(scores) <= 6:  # else the curves would lie behind it
        draw_legend(ax, ax)


def draw_legend(ax: Axes, of: Axes) -> None:
    """The AUC of each curve of `of`, in these axes."""
    box = {"frameon": True, "framealpha": 0.8, "edgecolor": "none", "borderpad": 0.4}
    ax.legend(
        *of.get_legend_handles_labels(), loc="lower right", title="AUC", alignment="left",
        bbox_to_anchor=(1, 0.02), **box,
    )  # fmt: skip
    if ax is not of:
        ax.set_axis_off()


def draw_scores(ax: Axes, detected: Detected, name: str) -> None:
    """The share of each group's prompts by score, and the detector's threshold."""
    plotting.share_histogram(ax, {group: detected.scores(name, group) for group in LABELS}, 30)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    detector, rate = DETECTORS[name], detected.options.false_positive_rate
    ax.set(title=detector.title, xlabel=detector.xlabel, ylabel="share of prompts")
    if (cut := detected.threshold(name)) is not None:
        plotting.mark(ax, cut, f"{100 * rate:g} % FPR")


def draw(detected: Detected) -> Figure:
    """The ROC curves if there are labels, and the scores of each detector, four plots in a row."""
    plots = [lambda ax: draw_roc(ax, detected)] if detected.judged else []
    if plots and len(detected.names) > 6:
        plots.append(lambda ax: draw_legend(ax, axes[0]))
    plots += [lambda ax, name=name: draw_scores(ax, detected, name) for name in detected.names]
    rows, columns = -(-len(plots) // 4), min(4, len(plots))
    figure = Figure(figsize=(4.3 * columns, 3.5 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, plot in zip(axes, plots, strict=False):
        plot(ax)
    for ax in axes[len(plots) :]:
        ax.remove()
    handles, labels = axes[len(plots) - 1].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=2, loc="outside upper right", borderaxespad=1)
    return figure


def save_figure(detected: Detected) -> list[Path]:
    """Write detection.png and detection.svg, or nothing without scores; their paths."""
    out = Path(detected.options.out)
    paths = out / "detection.png", out / "detection.svg"
    return plotting.save(lambda: draw(detected), *paths) if detected.names else []
