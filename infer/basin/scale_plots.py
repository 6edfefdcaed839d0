"""Figures of the critical scale: `critical_scale`, width against exposure, and `memory_map`."""

from functools import partial
from pathlib import Path
from textwrap import wrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from data.batches import spread
from infer import plotting
from infer.basin.scale_summary import Scales, doubling
from infer.basin.sheet import GAP, ROW, SIZE, Sheet, with_minus
from infer.plotting import COPY_COLOR, FAINT, OTHER_COLOR, PALETTE

GROUPS = {"memorized": COPY_COLOR, "ordinary": OTHER_COLOR, "unseen": PALETTE[0]}
SIGMA_MAP, GAP_MAP = "viridis", "magma"
LEFT, NAMES, TOP = 0.45, 1.6, 1.35  # of the map's page: margin, captions, where the images begin


def places(rows: pd.DataFrame) -> tuple[pd.Series, dict[float, str]]:
    """Where each image stands on the x axis: log2 of the times shown, or its group; and the ticks."""
    times = rows["times_shown"]
    if times.isna().any():
        ticks = {float(place): group for place, group in enumerate(rows["group"].unique())}
        return rows["group"].map({group: place for place, group in ticks.items()}), ticks
    place = np.log2(times.clip(lower=0.5))
    last = int(np.ceil(place.max()))
    ticks = {float(power): f"{2**power:g}" for power in range(0, last + 1, 1 + last // 8)}
    return place, ({-1.0: "0"} if (times == 0).any() else {}) | ticks


def draw_measure(ax: Axes, rows: pd.DataFrame, name: str, label: str, hollow: bool = False) -> None:
    """A dot per image; the median and the 10-90 % range of each group and doubling."""
    place, ticks = places(rows)
    width = 0.25 * np.random.default_rng(0).uniform(-1, 1, len(rows))
    for group, color in GROUPS.items():
        chosen = (rows["group"] == group).to_numpy()
        if not chosen.any():
            continue
        fill = {"facecolors": "none" if hollow else color, "edgecolors": color, "linewidths": 0.7}
        ax.scatter((place + width)[chosen], rows.loc[chosen, name], s=14, alpha=0.6, **fill)
        for _, part in rows[chosen].groupby(rows.loc[chosen, "times_shown"].map(doubling)):
            low, middle, high = part[name].quantile([0.1, 0.5, 0.9])
            x = place[part.index].median() + (0.12 if hollow else -0.12)
            style = {"fmt": "D" if hollow else "o", "markerfacecolor": "white" if hollow else color}
            style |= {"color": plotting.INK, "markersize": 5, "capsize": 3, "linewidth": 1.1, "zorder": 4}
            ax.errorbar(x, middle, [[middle - low], [high - middle]], **style)
    ax.set_xticks([*ticks], [*ticks.values()])
    known = rows["times_shown"].notna().all()
    ax.set(xlabel="times shown in training" if known else "", ylabel=label)
    ax.grid(True)


def draw_widths(scales: Scales) -> Figure:
    """sigma_c with the caption and without, and the gap of the two by location, against exposure."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    width, gap = figure.subplots(1, 2)
    draw_measure(width, scales.rows, "sigma_caption", "critical scale (noise level σ)")
    draw_measure(width, scales.rows, "sigma_empty", "critical scale (noise level σ)", hollow=True)
    width.set_yscale("log")
    width.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    width.yaxis.set_major_formatter(lambda level, _: f"{level:g}")
    width.yaxis.set_minor_locator(NullLocator())
    width.set_title("Width of the basin")
    draw_measure(gap, scales.rows, "local_gap", "|log ratio of σ with and without|")
    gap.set_ylim(bottom=0)
    gap.set_title("What the caption adds")
    counts = scales.rows["group"].value_counts()
    dot, ring = {"marker": "o", "linestyle": ""}, {"marker": "D", "markerfacecolor": "white"}
    handles = [
        Line2D([], [], color=color, label=f"{counts[group]} {group}", **dot)
        for group, color in GROUPS.items()
        if group in counts
    ]
    handles.append(Line2D([], [], color=plotting.INK, label="median with caption", **dot))
    handles.append(Line2D([], [], color=plotting.INK, label="median without", **dot | ring))
    figure.legend(handles=handles, ncols=len(handles), loc="outside upper right", borderaxespad=0.6)
    return figure


def heat(values: np.ndarray, norm: Normalize, cmap: str, size: tuple[int, int]) -> Image.Image:
    """A map as an image: a colour per location, each a square."""
    colors = matplotlib.colormaps[cmap](norm(values), bytes=True)[..., :3]
    return Image.fromarray(colors).resize(size, Image.Resampling.NEAREST)


def over(image: Image.Image, values: np.ndarray, norm: Normalize, cmap: str) -> Image.Image:
    """The map drawn over the image in grey: the more, the less of the image is seen."""
    grey = np.asarray(image.convert("L").convert("RGB"), float)
    strength = np.asarray(norm(values), float).clip(0, 1)
    smooth = Image.fromarray(strength.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    share = np.asarray(smooth).clip(0, 1)
    colors = matplotlib.colormaps[cmap](share)[..., :3] * 255
    opacity = (0.15 + 0.75 * share)[..., None]
    return Image.fromarray((grey * (1 - opacity) + colors * opacity).astype(np.uint8))


def draw_maps(scales: Scales) -> Figure:
    """Some images: sigma_c by location with the caption and without, and |log ratio| over the image."""
    rows = scales.rows
    known = rows["local_gap"].notna()
    shown = [
        number
        for group in GROUPS
        for number in spread([*np.flatnonzero(known & (rows["group"] == group))], scales.options.rows)
    ]
    step = SIZE + 3 * GAP
    heads = ("image", "σ with\ncaption", "σ without", "what the caption\nadds")
    sheet = Sheet(
        LEFT + NAMES + len(heads) * step + 1.3, TOP + len(shown) * ROW + 0.2, LEFT,
        "What is memorized, by location",
        "σ: noise level up to which the denoiser, iterated on itself, keeps a place.",
    )  # fmt: skip
    sigma = Normalize(np.log(scales.levels[0]), np.log(scales.levels[-1]))
    gap = Normalize(0, max(0.1, np.nanquantile(np.abs(scales.gaps[shown]), 0.99)))
    lefts = [LEFT + NAMES + column * step for column in range(len(heads))]
    for x, head in zip(lefts, heads, strict=True):
        sheet.text(x + SIZE / 2, TOP - 0.06, head, ha="center", va="bottom", fontsize=8.5)
    for place, number in enumerate(shown):
        y, row, image = TOP + place * ROW, rows.iloc[number], scales.images[number]
        times = "" if np.isnan(row["times_shown"]) else f", shown {row['times_shown']:g} times"
        lines = wrap(row["caption"], 21, max_lines=4, placeholder="…")
        sheet.text(LEFT, y + SIZE / 2, "\n".join(lines), va="center")
        sheet.text(LEFT, y + SIZE + 0.06, f"{row['group']}{times}", color=GROUPS[row["group"]], fontsize=8)
        logs = [np.log(scales.local[name][number]) for name in ("caption", "empty")]
        pictures = [image, *(heat(values, sigma, SIGMA_MAP, image.size) for values in logs)]
        pictures.append(over(image, np.abs(scales.gaps[number]), gap, GAP_MAP))
        words = "", f"{row['sigma_caption']:.2g}", f"{row['sigma_empty']:.2g}", f"{row['local_gap']:.2g}"
        for x, picture, word in zip(lefts, pictures, words, strict=True):
            sheet.image(x, y, picture)
            sheet.text(x + SIZE / 2, y + SIZE + 0.06, word, ha="center", color=FAINT, fontsize=8.5)
    draw_color_bars(sheet, lefts[-1] + step, sigma, gap)
    return sheet.figure


def draw_color_bars(sheet: Sheet, left: float, sigma: Normalize, gap: Normalize) -> None:
    """What the colours of both kinds of map mean."""
    levels = [level for level in (0.03, 0.1, 0.3, 1, 3, 10) if sigma.vmin <= np.log(level) <= sigma.vmax]
    for number, (norm, cmap, title) in enumerate(((sigma, SIGMA_MAP, "σ"), (gap, GAP_MAP, "|log ratio|"))):
        ax = sheet.axes(left, TOP + number * 1.6, 0.14, 1.1)
        bar = sheet.figure.colorbar(matplotlib.cm.ScalarMappable(norm, cmap), cax=ax)
        if norm is sigma:
            bar.set_ticks(np.log(levels), labels=[with_minus(f"{level:g}") for level in levels])
        ax.set_title(title, fontsize=8.5, pad=6, weight="normal")


def save_scale_figures(scales: Scales) -> list[Path]:
    """Draw and write critical_scale.png and .svg, and memory_map.png; their paths."""
    out = Path(scales.options.out)
    widths = [out / f"critical_scale.{suffix}" for suffix in ("png", "svg")]
    paths = plotting.save(partial(draw_widths, scales), *widths)
    return paths + plotting.save(partial(draw_maps, scales), out / "memory_map.png")
