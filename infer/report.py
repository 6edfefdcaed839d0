"""The page to look at after a comparison: headline, table, plots and a gallery in one HTML file."""

import base64
import io
import json
import os
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from infer.report_plots import colors_of, draw, draw_curves, draw_distributions, draw_scatter

MAX_ROWS = 200
SMALL, LARGE = 96, 256  # sides in pixels: exact up to the first, scaled down to the second


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
            text += f". {aligned} keeps the most of it, {clip[aligned]:.2f}, at similarity {own[aligned]:.2f}"
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


def number(value: float | str | None, form: str = "{:.2f}") -> str:
    return "–" if pd.isna(value) else form.format(value)


def gallery(folder: Path, samples: dict[str, pd.DataFrame]) -> tuple[list[dict], list[str]]:
    """A row per prompt and sample, those most similar under the first mitigation first; notes on gaps."""
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
