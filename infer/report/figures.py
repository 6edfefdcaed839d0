"""The figures of the report, drawn from a comparison's tables, samples and traces."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infer.metrics.similarity import COPY_THRESHOLD
from infer.plotting import COPY_COLOR, INK, OTHER_COLOR
from infer.report.plots import Plot, place_labels
from infer.report.study import Study, Sweep, finite

OWN, CLIP = "similarity_own_mean", "clip_score_mean"
MARKERS = {"none": "s", "base_model": "D"}
DIFFERENCE = "RMS(cond. − uncond.)"
EXPLAINED = (
    "Difference between the conditional and the unconditional prediction: how much the prompt steers a step. "
)
FEW = 5  # prompts, below which a curve is drawn thin and without its spread
LABELLED = 4  # sweeps: of more, the ends have no labels and the points no intervals


def plots_of(study: Study) -> list[Plot]:
    """All figures for which the comparison has the numbers."""
    plots = []
    for population, table in study.tables.items():
        name, draw = f"frontier_{population}".removesuffix("_all"), partial(draw_frontier, study, table)
        legend = {sweep.preset: study.colors[sweep.name] for sweep in study.sweeps}
        many = len(legend) > LABELLED
        lines = "points of a sweep: intervals in the table" if many else "lines: 95 % intervals"
        caption = f"Better is up and to the left; {lines}."
        height = 4.6 if many else 3.1
        plots.append(Plot(name, "Similarity against alignment", caption, draw, height, legend, population))
    for index, sweep in enumerate(study.sweeps, 1):
        if sweep.is_numeric:
            caption, draw = "With 95 % intervals; dotted: none.", partial(draw_sweep, study, sweep)
            plots.append(Plot(f"sweep{index}", f"Sweep of {sweep.name}", caption, draw, 3.4))
    single = {name: study.samples[name] for name in study.single}
    if "none" in study.traces and study.memorized is not None:
        rows = sum(bool(frame["transition_timestep"].notna().any()) for frame in single.values())
        title, draw = "What the prompt adds, without mitigation", partial(draw_memorized, study)
        caption = f"{EXPLAINED}Mean and 10–90 %; below, transitions: median and 10–90 %."
        plots.append(Plot("difference_memorized", title, caption, draw, 2.9 + 0.17 * rows))
    if names := [name for name in study.single if name in study.traces]:
        title, draw = "What the prompt adds, under each mitigation", partial(draw_difference, study, names)
        caption = f"{EXPLAINED}Mean over images; dot: median transition."
        legend = {name: study.colors[name] for name in names}
        plots.append(Plot("difference", title, caption, draw, legend=legend))
    if any(frame["similarity_own"].notna().any() for frame in single.values()):
        caption = f"Line: mean; dotted: {COPY_THRESHOLD:g}, above which an image counts as a copy."
        height, draw = max(3.1, 0.7 + 0.3 * len(single)), partial(draw_distributions, study)
        plots.append(Plot("distributions", "Similarity of every image", caption, draw, height))
    return plots


def draw_frontier(study: Study, table: pd.DataFrame, figure: Figure) -> None:
    ax, labels = figure.subplots(), []
    columns = [*dict.fromkeys([*table, OWN, CLIP])]
    points = finite(table).reindex(columns=columns).dropna(subset=[OWN, CLIP]).set_index("mitigation")
    for sweep in study.sweeps:
        line = points.reindex(sweep.points).dropna(subset=[OWN, CLIP])
        ax.plot(line[OWN], line[CLIP], color=study.colors[sweep.name], linewidth=1, alpha=0.8)
        for name in [*line.index[:1], *line.index[1:][-1:]] if len(study.sweeps) <= LABELLED else []:
            text = f"{sweep.option} {sweep.points[name]}"
            labels.append({"text": text, "x": line[OWN][name], "y": line[CLIP][name], "needed": False})
    for name, row in points.iterrows():
        color, single = study.colors[name], name in study.single
        if single:
            labels.append({"text": name, "x": row[OWN], "y": row[CLIP], "needed": True})
        if single or len(study.sweeps) <= LABELLED:
            ax.hlines(row[CLIP], *ends(row, OWN), color=color, alpha=0.6 if single else 0.2)
            ax.vlines(row[OWN], *ends(row, CLIP), color=color, alpha=0.6 if single else 0.2)
        marker = MARKERS.get(name, "o")
        ax.plot(row[OWN], row[CLIP], marker, color=color, markersize=6 if single else 3.5, markeredgewidth=0)
    ax.set(xlabel="similarity to own training image", ylabel="CLIP score")
    ax.margins(0.16)
    ax.grid(True)
    if labels:
        in_turn = pd.DataFrame(labels).sort_values("needed", ascending=False, kind="stable")
        place_labels(ax, in_turn, points[[OWN, CLIP]])


def ends(row: pd.Series, column: str) -> tuple[float, float]:
    return row.get(f"{column}_low", row[column]), row.get(f"{column}_high", row[column])


def draw_sweep(study: Study, sweep: Sweep, figure: Figure) -> None:
    """Similarity and alignment over the option, with what `none` has as a dotted line."""
    table = finite(study.tables["all"]).set_index("mitigation")
    labels = {OWN: "similarity to own", CLIP: "CLIP score"}
    columns = [column for column in labels if column in table]
    axes = np.atleast_1d(figure.subplots(max(1, len(columns)), sharex=True))
    for ax, column in zip(axes, columns, strict=True):
        line = table.reindex(sweep.points)
        low, high = (line.get(f"{column}_{end}", line[column]) for end in ("low", "high"))
        x = [*sweep.points.values()]
        ax.fill_between(x, low, high, color=study.colors[sweep.name], alpha=0.2, linewidth=0)
        ax.plot(x, line[column], "o-", color=study.colors[sweep.name], markersize=4, markeredgewidth=0)
        if "none" in table.index:
            ax.axhline(table[column]["none"], color=study.colors["none"], linewidth=1, linestyle=(0, (2, 2)))
            ax.annotate(
                "none", (0, table[column]["none"]), (4, 2), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="bottom", color=study.colors["none"],
            )  # fmt: skip
        ax.set_ylabel(labels[column])
        ax.margins(y=0.25)
        ax.grid(True)
    axes[-1].set_xlabel(f"{sweep.option} of {sweep.preset}")


def draw_memorized(study: Study, figure: Figure) -> None:
    """The difference over memorized and over other prompts, and each mitigation's transitions."""
    moving = [name for name in study.single if study.samples[name]["transition_timestep"].notna().any()]
    heights = [7, max(1, len(moving))]
    axes = figure.subplots(2, sharex=True, height_ratios=heights) if moving else [figure.subplots()]
    trace = study.traces["none"]
    memorized = trace["prompt_id"].isin(study.memorized)
    draw_group(axes[0], trace[memorized], "memorized", COPY_COLOR)
    draw_group(axes[0], trace[~memorized], "not memorized", OTHER_COLOR)
    style_difference(axes[0])
    axes[0].margins(y=0.2)
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    if moving:
        axes[0].set_xlabel("")
        draw_transitions(study, moving, axes[1])


def draw_group(ax: Axes, trace: pd.DataFrame, label: str, color: str) -> None:
    """The mean difference of a group of prompts with its spread; of few prompts thin and without it."""
    steps, prompts = trace.groupby("timestep")["difference_rms"], trace["prompt_id"].nunique()
    if not prompts:
        return
    low, high, few = steps.quantile(0.1), steps.quantile(0.9), prompts < FEW
    if not few:
        ax.fill_between(low.index, low, high, color=color, alpha=0.15, linewidth=0)
    text = f"{label}, {prompts} {'prompt' if prompts == 1 else 'prompts'}{': too few' if few else ''}"
    style = {"linewidth": 0.8, "linestyle": (0, (3, 2))} if few else {}
    ax.plot(low.index, steps.mean(), color=color, label=text, **style)


def draw_transitions(study: Study, names: list[str], ax: Axes) -> None:
    """Median and 10-90 % of the transitions of each mitigation, memorized prompts above the others."""
    for row, name in enumerate(names):
        samples, color = study.samples[name], study.colors[name]
        memorized = samples["prompt_id"].isin(study.memorized)
        for group, shift, face in ((memorized, -0.15, color), (~memorized, 0.15, "none")):
            timesteps = samples["transition_timestep"][group].astype(float)
            low, middle, high = timesteps.quantile([0.1, 0.5, 0.9])
            ax.plot([low, high], [row + shift] * 2, color=color, alpha=0.6, linewidth=1)
            ax.plot(middle, row + shift, "o", color=color, markerfacecolor=face, markersize=4)
    ax.set(xlabel="timestep (open dots: not memorized)", ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), [shorten(name) for name in names], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")


def draw_difference(study: Study, names: list[str], figure: Figure) -> None:
    ax = figure.subplots()
    for name in names:
        steps, samples = study.traces[name].groupby("timestep")["difference_rms"], study.samples[name]
        # only steps that half of the images have: over fewer, the mean would be that of other images
        mean = steps.mean().where(steps.count() * 2 >= len(samples))
        ax.plot(mean.index, mean, color=study.colors[name])
        transition, curve = samples["transition_timestep"].median(), mean.dropna()
        if pd.notna(transition) and len(curve):
            height = np.interp(transition, curve.index, curve)
            ax.plot(transition, height, "o", color=study.colors[name], markersize=7, markeredgewidth=0)
    style_difference(ax)


def style_difference(ax: Axes) -> None:
    ax.set(xlabel="timestep", ylabel=DIFFERENCE, xlim=(1000, 0))
    ax.set_ylim(bottom=0)
    ax.grid(True)


def shorten(name: str, length: int = 28) -> str:
    """The name, with a gap in its middle if it is too long to stand beside an axis."""
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-length // 2 + 1 :]}"


def draw_distributions(study: Study, figure: Figure) -> None:
    ax = figure.subplots()
    similarities = {name: study.samples[name]["similarity_own"].dropna() for name in study.single}
    everything = pd.concat(similarities)
    edges = np.linspace(min(0, everything.min()), max(1, everything.max()), 41)
    ax.axvline(COPY_THRESHOLD, color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (2, 3)))
    for row, (name, values) in enumerate(similarities.items()):
        counts, _ = np.histogram(values, edges)
        tops = row - 0.8 * counts / max(1, counts.max())
        ax.stairs(tops, edges, baseline=row, fill=True, color=study.colors[name])
        ax.vlines(values.mean(), row - 0.9, row, color=INK, linewidth=1.2)
    ax.set(xlabel="similarity to own training image", ylim=(len(similarities) - 0.8, -1))
    ax.set_yticks(np.arange(len(similarities)) - 0.3, map(shorten, similarities))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
