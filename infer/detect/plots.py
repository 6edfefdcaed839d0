"""What the detectors found, in a picture and a table: ROC curves, and how the scores of each group lie."""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from data.files import write_atomically
from infer.basin import sheet as look
from infer.detect.detection import DETECTORS, Detected
from infer.metrics.roc import auc, roc, threshold

TITLES = {
    "first_step": "Difference, first step", "all_steps": "Difference, all steps",
    "fall": "Fall to the first minimum", "attention_d": "Attention entropy D",
    "attention_e": "Attention entropy E",
}  # fmt: skip
AXES = {
    "first_step": "RMS(conditional − unconditional)", "all_steps": "RMS(conditional − unconditional), mean",
    "fall": "share of the highest difference", "attention_d": "entropy and its change (nats)",
    "attention_e": "entropy (nats)",
}  # fmt: skip
COLORS = dict(zip(DETECTORS, (*look.PALETTE[:4], look.PALETTE[5]), strict=True))
GROUPS = {"memorized": (True, look.COPIED), "ordinary": (False, look.ORDINARY), "unknown": (None, look.FREE)}
BINS = 30


def draw_roc(ax: Axes, found: Detected) -> None:
    """All detectors, with their AUCs; the false-positive rate that thresholds are for."""
    groups = {name: (found.scores(name, True), found.scores(name, False)) for name in found.names}
    for name in sorted(groups, key=lambda name: -auc(*groups[name])):
        label = f"{auc(*groups[name]):.3f}  {TITLES[name]}"
        ax.plot(*roc(*groups[name]), color=COLORS[name], label=label, clip_on=False)
    ax.plot([0, 1], [0, 1], color=look.FAINT, linewidth=0.8, linestyle=(0, (1, 2)))
    ax.set(title="ROC", xlim=(0, 1), ylim=(0, 1), xlabel="ordinary prompts flagged")
    ax.set_ylabel("memorized prompts flagged")
    ax.grid(True)
    key = {"frameon": True, "framealpha": 0.8, "edgecolor": "none", "borderpad": 0.4}
    ax.legend(loc="lower right", title="AUC", alignment="left", bbox_to_anchor=(1, 0.02), **key)


def draw_scores(ax: Axes, found: Detected, name: str) -> None:
    """The share of each group's prompts by score, and the threshold."""
    groups = {group: found.scores(name, label) for group, (label, _) in GROUPS.items()}
    groups = {group: scores for group, scores in groups.items() if len(scores)}
    bins = np.histogram_bin_edges(np.concatenate([*groups.values()]), BINS)
    for group, scores in groups.items():
        share = np.full(len(scores), 1 / len(scores))
        style = {"color": GROUPS[group][1], "alpha": 0.55, "label": f"{len(scores)} {group}"}
        ax.hist(scores, bins, weights=share, **style)
    ax.set(title=TITLES[name], xlabel=AXES[name], ylabel="share of prompts")
    rate = found.detection.false_positive_rate
    if found.judged and (cut := threshold(found.scores(name, False), rate)) is not None:
        ax.axvline(cut, color=look.EPSILON, linewidth=1.1, linestyle=(0, (4, 3)))
        place = (cut, 1), (0, 4), ax.get_xaxis_transform(), "offset points"
        ax.annotate(f"{100 * rate:g} % FPR", *place, ha="center", fontsize=8.5)


def draw(found: Detected) -> Figure:
    """The ROC curves, where there are labels, and the scores of each detector, three plots in a row."""
    plots = [lambda ax: draw_roc(ax, found)] if found.judged else []
    plots += [lambda ax, name=name: draw_scores(ax, found, name) for name in found.names]
    rows, columns = -(-len(plots) // 3), min(3, len(plots))
    figure = Figure(figsize=(4.3 * columns, 3.5 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, plot in zip(axes, plots, strict=False):
        plot(ax)
    for ax in axes[len(plots) :]:
        ax.remove()
    figure.legend(
        *axes[len(plots) - 1].get_legend_handles_labels(), ncols=2, loc="outside upper right", borderaxespad=1
    )
    return figure


def save(found: Detected) -> list[Path]:
    """detection.png and detection.svg in the folder; none where there is no score."""
    if not found.names:
        return []
    paths = [Path(found.detection.out) / f"detection.{suffix}" for suffix in ("png", "svg")]
    with matplotlib.rc_context(look.STYLE | {"svg.hashsalt": "detect", "axes.titlepad": 18}):
        figure = draw(found)
        for path in paths:
            plain = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
            write_atomically(path, lambda part, plain=plain: figure.savefig(part, **plain))
    return paths


def table(found: Detected) -> Table:
    """How well each detector tells the groups apart; without both groups, how its scores lie."""
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("detector", no_wrap=True)
    out.add_column("needs", no_wrap=True)
    rates = [f"TPR@{100 * rate:g}%" for rate in found.rates]
    for name in ("AUC", "95 %", *rates) if found.judged else ("median", "highest"):
        out.add_column(name, justify="right", no_wrap=True)
    if not found.judged:
        out.add_column("of the prompt", overflow="fold")
    for name in found.names:
        numbers = found.judge(name)
        if found.judged:
            ends = numbers["auc_low"], numbers["auc_high"]
            span = "–" if None in ends else "–".join(f"{end:.3f}" for end in ends)
            shares = ("" if share is None else f"{share:.0%}" for share in numbers["tpr_at_fpr"].values())
            cells = [f"{numbers['auc']:.3f}", span, *shares]
        else:
            top = found.rows.loc[found.rows[name].idxmax()]
            prompt = textwrap.shorten(top["prompt"], 60, placeholder=" …")
            cells = [f"{found.rows[name].median():.4g}", f"{top[name]:.4g}", prompt]
        out.add_row(name, DETECTORS[name], *cells)
    return out
