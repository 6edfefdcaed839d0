"""The page to look at after a comparison: headline, table, plots and a gallery in one HTML file."""

import base64
import io
import json
import os
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

MAX_ROWS = 200
SMALL, LARGE = 96, 256  # sides in pixels: exact up to the first, scaled down to the second
PALETTE = ("#3b8eea", "#2fa36b", "#e08a1e", "#9d5bd2", "#14a3a8", "#d9559c", "#a08030", "#6c7ee1")
LABEL_PLACES = ((7, 0), (-7, 0), (0, 7), (0, -7), (5, 5), (5, -5), (-5, 5), (-5, -5))
MARKERS = {"none": "s", "base_model": "D"}
INK = "#123456"  # stands for the page's text colour while matplotlib, which has no currentColor, draws
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.12, "grid.color": INK,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


class Column(NamedTuple):
    group: str
    label: str
    better: str  # "↓", "↑" or ""
    form: str
    hint: str


OWN, TOP, SSCD = "similarity to own image", "similarity to nearest image", "SSCD to own image"
COST, TRANSITION = "cost per image", "transition"
COLUMNS = {
    "images": Column("", "images", "", "{:.0f}", "Images generated and measured."),
    "similarity_own_mean": Column(OWN, "mean", "↓", "{:.3f}", "To the training image of the same prompt."),
    "similarity_own_std": Column(OWN, "std", "", "{:.3f}", "Standard deviation over images."),
    "similarity_own_p95": Column(OWN, "p95", "↓", "{:.3f}", "95th percentile: the copies that remain."),
    "share_above_05": Column(OWN, "> 0.5", "↓", "{:.1%}", "Share of images whose similarity is above 0.5."),
    "similarity_top_mean": Column(TOP, "mean", "↓", "{:.3f}", "To whichever training image is most similar."),
    "similarity_top_p95": Column(TOP, "p95", "↓", "{:.3f}", "95th percentile: the copies that remain."),
    "sscd_own_mean": Column(SSCD, "mean", "↓", "{:.3f}", "The same by SSCD, a copy detector."),
    "sscd_own_p95": Column(SSCD, "p95", "↓", "{:.3f}", "95th percentile of the similarity by SSCD."),
    "clip_score_mean": Column("quality", "CLIP", "↑", "{:.3f}", "Alignment with the prompt, mean."),
    "fid": Column("quality", "FID", "↓", "{:.1f}", "Fréchet distance of generated to reference images."),
    "nfe_mean": Column(COST, "UNet evals", "↓", "{:.1f}", "Evaluations of the UNet, mean."),
    "seconds_per_image": Column(COST, "seconds", "↓", "{:.2f}", "Wall-clock time, mean."),
    "fired_share": Column(TRANSITION, "found", "", "{:.0%}", "Share of images with a transition point."),
    "transition_timestep_median": Column(TRANSITION, "timestep", "", "{:.0f}", "Of the images, median."),
}


def write_report(folder: Path) -> Path:
    """Write `<folder>/report.html` from a comparison folder: one page, complete in itself."""
    folder = Path(folder)
    source, about = folder / "comparison.parquet", folder / "comparison.json"
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing: run `python -m infer compare` first")
    comparison = pd.read_parquet(source).dropna(axis="columns", how="all").reset_index(drop=True)
    names = comparison["mitigation"].tolist()
    samples = {name: pd.read_parquet(inside(folder, f"{name}/samples.parquet")) for name in names}
    traces = {name: pd.read_parquet(inside(folder, f"{name}/traces.parquet")) for name in names}
    shown = sorted(names, key=lambda name: {"none": 0, "base_model": 1}.get(name, 2))
    rows, notes = gallery(folder, {name: samples[name] for name in shown})
    colors, columns = colors_of(names), columns_of(comparison)
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    jinja.filters["number"] = number
    page = jinja.get_template("report.html.j2").render(
        about=json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {},
        headline=headline(comparison),
        columns=columns,
        groups=[(group, len([*members])) for group, members in groupby(columns.values(), lambda c: c.group)],
        table=comparison.to_dict("records"),
        best=best_of(comparison, columns),
        colors=colors,
        scatter=draw(draw_scatter, comparison, colors),
        curves=draw(draw_curves, samples, traces, colors),
        distributions=draw(draw_distributions, samples, colors, height=max(3.1, 0.7 + 0.3 * len(names))),
        shown=shown,
        rows=rows,
        notes=notes,
    )
    part, target = folder / "report.html.part", folder / "report.html"
    part.write_text(page, encoding="utf-8")
    os.replace(part, target)
    return target


def headline(comparison: pd.DataFrame) -> str:
    """The finding in words; every number and name in it comes from the table."""
    table = comparison.set_index("mitigation").reindex(columns=["similarity_own_mean", "clip_score_mean"])
    own, clip = table["similarity_own_mean"].dropna(), table["clip_score_mean"].dropna()
    base = f"The untouched base model is at {own['base_model']:.2f}." if "base_model" in own else ""
    others = own.drop(["none", "base_model"], errors="ignore")
    if "none" not in own or others.empty:
        return base
    lowest = others.idxmin()
    text = f"Without mitigation, images match their training image at {own['none']:.2f}; "
    if own[lowest] >= own["none"]:
        return f"{text}no mitigation lowers this. {base}"
    text += f"{lowest} brings this to {own[lowest]:.2f}"
    if {"none", lowest} <= set(clip.index):
        text += f" while the CLIP score goes from {clip['none']:.2f} to {clip[lowest]:.2f}"
        aligned = clip[clip.index.intersection(others.index)].idxmax()
        if aligned != lowest:
            text += f". {aligned} keeps the highest, {clip[aligned]:.2f}, at similarity {own[aligned]:.2f}"
    return f"{text}. {base}"


def columns_of(comparison: pd.DataFrame) -> dict[str, Column]:
    """Known columns in their order, then other numbers; intervals and deltas belong into another's cells."""
    numeric = comparison.select_dtypes("number")
    attached = [name + suffix for name in numeric for suffix in ("_low", "_high", "_delta")]
    columns = {name: column for name, column in COLUMNS.items() if name in numeric}
    for name in numeric.columns.difference([*columns, *attached], sort=False):
        form = "{:.0f}" if pd.api.types.is_integer_dtype(numeric[name]) else "{:.3f}"
        better = "↓" if name.startswith(("similarity", "sscd", "share")) else ""
        columns[name] = Column("more", name.replace("_", " "), better, form, f"{name} in comparison.parquet.")
    return columns


def best_of(comparison: pd.DataFrame, columns: dict[str, Column]) -> dict[str, str]:
    """The best value of each column as it is shown, so that numbers that look equal are marked alike."""
    rivals, best = comparison[comparison["mitigation"] != "base_model"], {}
    for name, column in columns.items():
        values = rivals[name].dropna()
        texts = values.map(column.form.format)
        if column.better and texts.nunique() > 1:
            best[name] = texts[values.idxmin() if column.better == "↓" else values.idxmax()]
    return best


def number(value: float | None, form: str = "{:.2f}") -> str:
    return "–" if pd.isna(value) else form.format(value)


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
    edges = np.linspace(min(0, *(values.min() for values in similarities.values() if len(values))), 1, 41)
    ax.axvline(0.5, color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (2, 3)))
    for row, (name, values) in enumerate(similarities.items()):
        counts, _ = np.histogram(values, edges)
        ax.stairs(row - 0.8 * counts / max(1, counts.max()), edges, baseline=row, fill=True, color=colors[name])
        ax.vlines(values.mean(), row - 0.9, row, color=INK, linewidth=1.2)
    ax.set(xlabel="similarity to own training image", ylim=(len(samples) - 0.8, -1))
    ax.set_yticks(np.arange(len(samples)) - 0.3, list(samples))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def gallery(folder: Path, samples: dict[str, pd.DataFrame]) -> tuple[list[dict], list[str]]:
    """A row per prompt and sample, most similar under the first mitigation first; notes on what is left out."""
    records = {}
    for name, frame in samples.items():
        frame = frame.sort_values("similarity_own", ascending=False)
        records[name] = frame.set_index(["prompt_id", "sample"]).to_dict("index")
    keys = list(dict.fromkeys(key for images in records.values() for key in images))
    rows, training, generated = [], {}, []
    for prompt_id, sample in keys[:MAX_ROWS]:
        first = prompt_id not in training  # the prompt's further rows reuse the embedded image
        if first:
            training[prompt_id] = picture(inside(folder / "training", f"{prompt_id}.png"))
        found = {name: images.get((prompt_id, sample)) for name, images in records.items()}
        pictures = [data and picture(inside(folder / name, data["image"])) for name, data in found.items()]
        prompt = next(record["prompt"] for record in found.values() if record)
        row = {"prompt_id": prompt_id, "sample": sample, "prompt": prompt, "training": training[prompt_id]}
        rows.append(row | {"first": first, "cells": [*zip(found.items(), pictures, strict=True)]})
        generated += pictures
    notes = []
    if len(keys) > len(rows):
        notes.append(f"{len(rows)} of {len(keys)} rows are shown; the other images are in the folder.")
    for kind, pictures in (("training", list(training.values())), ("generated", generated)):
        if pictures.count(None):
            notes.append(f"Missing {kind} images in these rows: {pictures.count(None)} of {len(pictures)}.")
    return rows, notes


def inside(folder: Path, relative: str) -> Path:
    """The path that a data file names, which must not lead out of the folder that it belongs to."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{relative!r} points outside of {folder}")
    return path


def picture(path: Path) -> dict | None:
    """The image as a data URI: exact if small, else scaled down to keep the page light; None if missing."""
    if not path.is_file():
        return None
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    small = max(image.size) <= SMALL
    image.thumbnail((LARGE, LARGE))
    image.save(buffer := io.BytesIO(), "WEBP", lossless=small, quality=85)
    return {"src": f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", "small": small}
