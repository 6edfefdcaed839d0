"""Figures of `python -m infer basin`: `trace`, `sweep` and `magnitudes`."""

import math
from functools import partial
from pathlib import Path
from textwrap import shorten, wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.batches import spread
from infer import plotting
from infer.basin.sheet import GAP, ROW, SIZE, Sheet, color_of, with_minus
from infer.basin.summary import Findings
from infer.plotting import COPY_COLOR, INK, OTHER_COLOR, PALETTE

SPACE_COLORS = {"epsilon": INK, "model_output": PALETTE[3]}
LEFT, RIGHT, TOP = 0.85, 0.85, 1.5  # margins of the page; where its charts begin
CHART, IMAGES = 2.5, 4.9  # height of a chart; where the images begin


def chart_title(findings: Findings, before: str, end: str = " before t") -> str:
    scale = 0 if before == "none" else findings.options.opposite
    return with_minus(f"{'No' if before == 'none' else 'Opposite'} guidance{end} (scale {scale:g})")


def has_two_spaces(findings: Findings) -> bool:
    """Whether the model predicts something other than noise."""
    curves = findings.curves["memorized", "none"]
    return not np.allclose(curves["epsilon"], curves["model_output"], equal_nan=True)


def draw_trace(ax: Axes, findings: Findings, before: str) -> list[Axes]:
    """The traced curves, a dot at each point, and where the dynamic transition fires; the axes used."""
    steps, row = np.array(findings.timesteps), findings.requests["memorized"].index(findings.traced)
    curves, fired = findings.curves["memorized", before], findings.fired["memorized", before]
    plotting.timestep_axes(ax, chart_title(findings, before), plotting.DIFFERENCE)
    spaces = {"epsilon": (ax, "noise prediction")}
    if has_two_spaces(findings):
        right = plotting.second_axis(ax, SPACE_COLORS["model_output"])
        spaces["model_output"] = (right, "model output (right axis)")
    times, handles = {space: fired[space][row] for space in spaces}, []
    for space, (chart, label) in spaces.items():
        time, color = times[space], SPACE_COLORS[space]
        label += ": never fires" if math.isnan(time) else ""
        handles += chart.plot(steps, curves[space][row], color=color, label=label, zorder=2)
        if not math.isnan(time):
            earlier = len(spaces) > 1 and time == np.nanmax(list(times.values()))
            plotting.mark(ax, time, f"fires at {time:g}", color, "right" if earlier else "left")
    for point in findings.options.points:
        similarity = findings.similarity[findings.key(before, point)][findings.traced]
        x = np.clip(point, steps[-1], steps[0])
        y = np.interp(-x, -steps, curves["epsilon"][row])
        ax.plot(x, y, "o", color=color_of(similarity), markersize=6.5, clip_on=False, zorder=3)
    plotting.legend(ax, handles)
    return [chart for chart, _ in spaces.values()]


def trace(findings: Findings) -> Figure:
    """One prompt: the difference while the scale is held, and the images with guidance from each point on."""
    options, traced = findings.options, findings.traced
    columns = max(3, math.ceil(len(options.points) / 2))
    row, large = 1.6, 1.6 + SIZE  # the training image is as high as two rows: 512 pixels
    width, between = large + 2 * GAP + columns * (SIZE + GAP) - GAP, 1.7
    sheet = Sheet(
        LEFT + 2 * width + between + RIGHT, IMAGES + 2 * row + 0.1, LEFT,
        f"“{shorten(traced.prompt, 60, placeholder='…')}”: where the basin ends",
        "Curves: difference of the predictions while the scale is held to the end; dashed: where the dynamic "
        f"transition fires. Images: full guidance ({options.model.guidance_scale:g}) on [t, 0], the dots.",
    )  # fmt: skip
    charts = []
    for before, start in (("none", LEFT), ("opposite", LEFT + width + between)):
        charts.append(draw_trace(sheet.axes(start, TOP, width, CHART), findings, before))
        sheet.image(start, IMAGES, findings.training[traced.prompt_id], large)
        sheet.text(start, IMAGES - 0.06, "training image", va="bottom", fontsize=8.5)
        for number, point in enumerate(options.points):
            x = start + large + 2 * GAP + (number % columns) * (SIZE + GAP)
            y, key = IMAGES + (number // columns) * row, findings.key(before, point)
            sheet.text(x + SIZE / 2, y - 0.06, f"[{point:g}, 0]", ha="center", va="bottom", fontsize=8.5)
            sheet.generated(x, y, findings.images[key][traced], findings.similarity[key][traced])
    for pair in zip(*charts, strict=True):
        plotting.same_height(pair)
    sheet.frame_legend(RIGHT)
    return sheet.figure


def draw_predictions(ax: Axes, findings: Findings) -> None:
    curves = findings.curves["memorized", "none"]
    plotting.band(ax, findings.timesteps, curves["unconditional"], PALETTE[0], "unconditional")
    plotting.band(ax, findings.timesteps, curves["conditional"], PALETTE[2], "conditional")
    plotting.timestep_axes(ax, "Predictions", "RMS of the noise prediction")
    plotting.legend(ax)


def draw_difference(ax: Axes, findings: Findings) -> None:
    curves, axes = findings.curves["memorized", "none"], [ax]
    plotting.band(ax, findings.timesteps, curves["epsilon"], SPACE_COLORS["epsilon"], "noise")
    plotting.timestep_axes(ax, "Difference", plotting.DIFFERENCE)
    if has_two_spaces(findings):
        color = SPACE_COLORS["model_output"]
        axes.append(plotting.second_axis(ax, color))
        plotting.band(axes[1], findings.timesteps, curves["model_output"], color, "output (right)")
    for each in axes:
        each.set_ylim(bottom=0)
    plotting.legend(ax, [line for each in axes for line in each.get_lines()])


def draw_similarity(ax: Axes, findings: Findings) -> None:
    table, half = findings.by_point(), findings.half_way()
    ax.fill_between(table.index, table["p10"], table["p90"], color=COPY_COLOR, alpha=0.13, linewidth=0)
    ax.plot(table["mean"], "o-", color=COPY_COLOR, label="mean", clip_on=False)
    copies = {"color": plotting.FAINT, "label": "share of copies", "markersize": 4}
    ax.plot(table["share_above_05"], "s--", clip_on=False, **copies)
    plotting.timestep_axes(ax, "Images", "similarity to the training image")
    ax.set_xlabel("t, for full guidance on [t, 0]")
    ax.set_ylim(min(0, np.nan_to_num(table["p10"].min())), 1)
    plotting.legend(ax)
    if half is not None:
        plotting.mark(ax, half, f"half way: {half:g}", linestyle=plotting.DOTTED)


def sweep(findings: Findings) -> Figure:
    """Means over all prompts with no guidance before t, and some prompts' images."""
    options, half, names, images = findings.options, findings.half_way(), 1.5, IMAGES + 0.2
    first = [request for request in findings.requests["memorized"] if request.sample == 0]
    rows, columns = spread(first, options.rows), 1 + len(options.points)
    inner = max(12.0, names + columns * (SIZE + GAP) - GAP)
    sheet = Sheet(
        LEFT + inner + RIGHT, images + len(rows) * ROW + 0.1, LEFT,
        "Where the basin ends: mean similarity has fallen half way "
        + ("at none of the points" if half is None else f"by t = {half:g}"),
        f"{len(first)} memorized prompts, scale 0 before t, {options.model.guidance_scale:g} from t "
        "on; mean and 10–90 % band.",
    )  # fmt: skip
    width, between = (inner - 2.2) / 3, 1.1
    for number, draw in enumerate((draw_predictions, draw_difference, draw_similarity)):
        draw(sheet.axes(LEFT + number * (width + between), TOP, width, CHART), findings)
    step = min((inner - names - SIZE) / (columns - 1), 1.5 * (SIZE + GAP))
    step = math.floor(plotting.DPI * step) / plotting.DPI  # whole pixels
    lefts = [LEFT + names + column * step for column in range(columns)]
    heads = ["training\nimage", *(f"{findings.label(point)}\n[{point:g}, 0]" for point in options.points)]
    for x, head in zip(lefts, heads, strict=True):
        sheet.text(x + SIZE / 2, images - 0.06, head, ha="center", va="bottom", fontsize=8.5)
    for number, request in enumerate(rows):
        y, lines = images + number * ROW, wrap(request.prompt, 19, max_lines=5, placeholder="…")
        sheet.text(LEFT, y + SIZE / 2, "\n".join(lines), va="center")
        sheet.image(lefts[0], y, findings.training[request.prompt_id])
        for x, point in zip(lefts[1:], options.points, strict=True):
            key = findings.key("none", point)
            sheet.generated(x, y, findings.images[key][request], findings.similarity[key][request])
    sheet.frame_legend(RIGHT)
    return sheet.figure


def magnitudes(findings: Findings) -> Figure:
    """The difference of memorized prompts and of others, without guidance and with opposite guidance."""
    width, between, requests = 5.2, 0.75, findings.requests
    sheet = Sheet(
        LEFT + 2 * width + between + 0.35, TOP + 3.2 + 0.7, LEFT,
        "Memorized prompts against others" if "others" in requests else "Memorized prompts",
        "RMS of the difference of the noise predictions while the scale is held to the end. Thin: each "
        "image; thick: the mean.",
    )  # fmt: skip
    charts = []
    colors = {"others": OTHER_COLOR, "memorized": COPY_COLOR}
    for letter, before, start in (("a", "none", LEFT), ("b", "opposite", LEFT + width + between)):
        charts.append(ax := sheet.axes(start, TOP, width, 3.2))
        for group in (group for group in colors if group in requests):
            curves, label = findings.curves[group, before]["epsilon"], f"{len(requests[group])} {group}"
            plotting.thin_and_mean(ax, findings.timesteps, curves, colors[group], label)
        title, ylabel = chart_title(findings, before, ""), plotting.DIFFERENCE if before == "none" else ""
        plotting.timestep_axes(ax, f"({letter}) {title}", ylabel)
        plotting.legend(ax, ax.get_legend_handles_labels()[0][::-1])
    plotting.same_height(charts)
    return sheet.figure


def save_figures(findings: Findings) -> list[Path]:
    """Draw and write all figures; their paths."""
    paths = []
    for draw, suffixes in ((trace, ("png", "svg")), (sweep, ("png",)), (magnitudes, ("png", "svg"))):
        files = (Path(findings.options.out, f"{draw.__name__}.{suffix}") for suffix in suffixes)
        paths += plotting.save(partial(draw, findings), *files)
    return paths
