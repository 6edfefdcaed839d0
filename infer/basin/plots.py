"""The pictures of `python -m infer basin`: `trace`, `sweep` and `magnitudes`."""

import math
from pathlib import Path
from textwrap import shorten, wrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.files import write_atomically
from infer.basin import sheet as look
from infer.basin.explore import spread
from infer.basin.options import Findings
from infer.basin.sheet import GAP, ROW, SIDE, Sheet, over_time, signed
from infer.report.style import PALETTE

DIFFERENCE = "RMS(conditional − unconditional)"
LEFT, RIGHT, TOP = 0.85, 0.85, 1.5  # margins of the page; where its charts begin
CHART, IMAGES = 2.5, 4.9  # height of a chart; where the images begin


def held_words(found: Findings, how: str, before: str = " before t") -> str:
    scale = 0 if how == "none" else found.basin.opposite
    return signed(f"{'No' if how == 'none' else 'Opposite'} guidance{before} (scale {scale:g})")


def two_spaces(found: Findings) -> bool:
    """Whether the model predicts something else than noise."""
    curves = found.curves["memorized", "none"]
    return not np.allclose(curves["epsilon"], curves["model_output"], equal_nan=True)


def draw_trace(ax: Axes, found: Findings, how: str) -> list[Axes]:
    """The traced prompt's curves, a dot at each point, and where the dynamic transition fires; the axes."""
    steps, index = np.array(found.timesteps), found.memorized.index(found.traced)
    curves, fired = found.curves["memorized", how], found.fired["memorized", how]
    over_time(ax, held_words(found, how), DIFFERENCE)
    shown = {"epsilon": (ax, look.EPSILON, "noise prediction")}
    if two_spaces(found):
        shown["model_output"] = (look.second_axis(ax, look.MODEL), look.MODEL, "model output (right axis)")
    times = {space: fired[space][index] for space in shown}
    handles = []
    for space, (chart, color, name) in shown.items():
        when = times[space]
        name += ": never fires" if math.isnan(when) else ""
        handles += chart.plot(steps, curves[space][index], color=color, label=name, zorder=2)
        if not math.isnan(when):
            first = len(shown) > 1 and when == np.nanmax(list(times.values()))
            ax.axvline(when, color=color, linewidth=1.1, linestyle=(0, (4, 3)))
            ax.annotate(
                f"fires at {when:g}", (when, 1), (-3 if first else 3, 3), ax.get_xaxis_transform(),
                "offset points", color=color, fontsize=8.5, ha="right" if first else "left",
            )  # fmt: skip
    for point in found.basin.points:
        likeness = found.similarity[how, found.place(point)][found.traced.prompt_id]
        x = np.clip(point, steps[-1], steps[0])
        y = np.interp(-x, -steps, curves["epsilon"][index])
        ax.plot(x, y, "o", color=look.color_of(likeness), markersize=6.5, clip_on=False, zorder=3)
    look.legend(ax, handles)
    return [chart for chart, _, _ in shown.values()]


def trace(found: Findings) -> Figure:
    """One prompt: the difference while the scale is held, and what guidance from each point on makes."""
    basin, key = found.basin, found.traced.prompt_id
    columns = max(3, math.ceil(len(basin.points) / 2))
    row, own = 1.6, 1.6 + SIDE  # the training image is as high as two rows: 512 pixels
    width, between = own + 2 * GAP + columns * (SIDE + GAP) - GAP, 1.7
    sheet = Sheet(
        LEFT + 2 * width + between + RIGHT, IMAGES + 2 * row + 0.1, LEFT,
        f"“{shorten(found.traced.prompt, 60, placeholder='…')}”: where the basin ends",
        "Curves: difference of the predictions while the scale is held to the end; dashed: where the dynamic "
        f"transition fires. Images: full guidance ({basin.model.guidance_scale:g}) on [t, 0], the dots.",
    )  # fmt: skip
    charts = []
    for how, start in (("none", LEFT), ("opposite", LEFT + width + between)):
        charts.append(draw_trace(sheet.axes(start, TOP, width, CHART), found, how))
        sheet.image(start, IMAGES, found.training[key], own)
        sheet.text(start, IMAGES - 0.06, "training image", va="bottom", fontsize=8.5)
        for number, point in enumerate(basin.points):
            x = start + own + 2 * GAP + (number % columns) * (SIDE + GAP)
            y, at = IMAGES + (number // columns) * row, (how, found.place(point))
            sheet.text(x + SIDE / 2, y - 0.06, f"[{point:g}, 0]", ha="center", va="bottom", fontsize=8.5)
            sheet.generated(x, y, found.images[at][key], found.similarity[at][key])
    for pair in zip(*charts, strict=True):
        look.from_zero(pair)
    sheet.key(RIGHT)
    return sheet.figure


def draw_means(charts: list[Axes], found: Findings) -> None:
    """Predictions, their difference and the similarity, by timestep, over all memorized prompts."""
    steps, curves = found.timesteps, found.curves["memorized", "none"]
    size, difference, likeness = charts
    look.band(size, steps, curves["unconditional"], look.FREE, "unconditional")
    look.band(size, steps, curves["conditional"], PALETTE[2], "conditional")
    over_time(size, "Predictions", "RMS of the noise prediction")
    look.legend(size)
    look.band(difference, steps, curves["epsilon"], look.EPSILON, "noise")
    over_time(difference, "Difference", DIFFERENCE)
    handles = [*difference.get_lines()]
    if two_spaces(found):
        other = look.second_axis(difference, look.MODEL)
        look.band(other, steps, curves["model_output"], look.MODEL, "output (right)")
        other.set_ylim(bottom=0)
        handles += other.get_lines()
    difference.set_ylim(bottom=0)
    look.legend(difference, handles)
    table = found.by_point()
    likeness.fill_between(table.index, table["p10"], table["p90"], color=look.COPIED, alpha=0.13, linewidth=0)
    likeness.plot(table["mean"], "o-", color=look.COPIED, label="mean", clip_on=False)
    likeness.plot(
        table["share_above_05"], "s--", color=look.FAINT, label="share of copies", clip_on=False, markersize=4
    )
    over_time(likeness, "Images", "similarity to the training image")
    likeness.set_xlabel("t, for full guidance on [t, 0]")
    likeness.set_ylim(min(0, table["p10"].min()), 1)
    look.legend(likeness)


def sweep(found: Findings) -> Figure:
    """Means over all prompts with no guidance before t, and some prompts' images."""
    basin, half, names, images = found.basin, found.half_way(), 1.5, IMAGES + 0.2
    rows, columns = spread(found.memorized, basin.rows), 1 + len(basin.points)
    inner = max(12.0, names + columns * (SIDE + GAP) - GAP)
    sheet = Sheet(
        LEFT + inner + RIGHT, images + len(rows) * ROW + 0.1, LEFT,
        "Where the basin ends: mean similarity has fallen half way "
        + ("at none of the points" if half is None else f"by t = {half:g}"),
        f"{len(found.memorized)} memorized prompts, scale 0 before t, {basin.model.guidance_scale:g} from t "
        "on; mean and 10–90 % band.",
    )  # fmt: skip
    between = 1.1
    width = (inner - 2 * between) / 3
    charts = [sheet.axes(LEFT + n * (width + between), TOP, width, CHART) for n in range(3)]
    draw_means(charts, found)
    if half is not None:
        charts[2].axvline(half, color=look.EPSILON, linewidth=1.1, linestyle=(0, (1, 2)))
        charts[2].annotate(
            f"half way: {half:g}", (half, 1), (0, 3), charts[2].get_xaxis_transform(), "offset points",
            ha="center", fontsize=8.5,
        )  # fmt: skip
    # whole pixels
    step = math.floor(look.DPI * min((inner - names - SIDE) / (columns - 1), 1.5 * (SIDE + GAP))) / look.DPI
    places = [LEFT + names + n * step for n in range(columns)]
    ends = {math.inf: "ordinary", -math.inf: "never"}
    heads = ["training\nimage", *(f"{ends.get(found.place(t), '')}\n[{t:g}, 0]" for t in basin.points)]
    for x, head in zip(places, heads, strict=True):
        sheet.text(x + SIDE / 2, images - 0.06, head, ha="center", va="bottom", fontsize=8.5)
    for number, request in enumerate(rows):
        key, y = request.prompt_id, images + number * ROW
        words = wrap(request.prompt, 19, max_lines=5, placeholder="…")
        sheet.text(LEFT, y + SIDE / 2, "\n".join(words), va="center")
        sheet.image(places[0], y, found.training[key])
        for x, point in zip(places[1:], basin.points, strict=True):
            at = "none", found.place(point)
            sheet.generated(x, y, found.images[at][key], found.similarity[at][key])
    sheet.key(RIGHT)
    return sheet.figure


def magnitudes(found: Findings) -> Figure:
    """The difference of memorized prompts and of others, without guidance and with opposite guidance."""
    width, between = 5.2, 0.75
    sheet = Sheet(
        LEFT + 2 * width + between + 0.35, TOP + 3.2 + 0.7, LEFT,
        "Memorized prompts against others" if found.others else "Memorized prompts",
        "RMS of the difference of the noise predictions while the scale is held to the end. Thin: each "
        "prompt; thick: the mean.",
    )  # fmt: skip
    charts = []
    groups = {"others": (found.others, look.ORDINARY), "memorized": (found.memorized, look.COPIED)}
    for letter, how, start in (("a", "none", LEFT), ("b", "opposite", LEFT + width + between)):
        charts.append(ax := sheet.axes(start, TOP, width, 3.2))
        for group, (requests, color) in groups.items():
            if requests:
                curves = found.curves[group, how]["epsilon"]
                ax.plot(found.timesteps, curves.T, color=color, linewidth=0.7, alpha=0.3)
                name = f"{len(requests)} {group}"
                ax.plot(found.timesteps, curves.mean(0), color=color, linewidth=2.4, label=name, zorder=3)
        over_time(ax, f"({letter}) {held_words(found, how, '')}", DIFFERENCE if how == "none" else "")
        look.legend(ax, ax.get_legend_handles_labels()[0][::-1])
    look.from_zero(charts)
    return sheet.figure


def save(found: Findings) -> list[Path]:
    """Draw all pictures; their paths."""
    out, paths = Path(found.basin.out), []
    out.mkdir(parents=True, exist_ok=True)
    for picture, kinds in ((trace, ("png", "svg")), (sweep, ("png",)), (magnitudes, ("png", "svg"))):
        with matplotlib.rc_context(look.STYLE | {"svg.hashsalt": picture.__name__}):
            figure = picture(found)
            for kind in kinds:
                metadata = {"Date": None} if kind == "svg" else None
                paths.append(out / f"{picture.__name__}.{kind}")
                write_atomically(paths[-1], lambda part, f=figure, m=metadata: f.savefig(part, metadata=m))
    return paths
