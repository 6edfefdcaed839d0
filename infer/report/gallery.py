"""The gallery of the report: per prompt and sample a strip of images, with their numbers and traces.

A strip is one WebP with the training image and all generated ones side by side, in the order of `names`, and
a gap where an image is missing: a thousand rows are a thousand images, not ten thousand.
"""

import base64
import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from PIL import Image

from data.images.decoding import decoded
from infer.metrics.columns import IMAGE_COLUMNS
from infer.predict.run_folder import KEY, inside
from infer.report.study import Study
from infer.report.table import number

MAX_ROWS = 1000
LARGE, SMALLEST = 256, 64  # width in pixels of an embedded image, which depends on how many there are
PIXELS = 150e6  # in all of the embedded images
EXACT, EXACT_IMAGES = 96, 2500  # images up to this width, if no more than these, are embedded exactly
STRIP = 16383  # pixels: the greatest width of a WebP
Records = dict[tuple[str, int], dict[str, Any]]  # by prompt and sample


@dataclass
class Gallery:
    """What the page needs to draw the gallery.

    Attributes:
        names: the mitigations, in the order of a strip.
        columns: what is shown side by side; a sweep's points are one column.
        facts: labels of the numbers of an image.
        rows: per prompt and sample the prompt and, per mitigation, numbers and a trace.
        strips: the images of each row, as base64.
        timesteps: the schedules that traces refer to.
        notes: on gaps.
    """

    names: list[str]
    columns: list[dict[str, Any]]
    facts: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    strips: list[str] = field(default_factory=list)
    timesteps: list[list[float | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_gallery(study: Study) -> Gallery:
    """A row per prompt and sample, those most similar under the first mitigation first."""
    columns = side_by_side(study)
    names = names_in(columns)
    records, shown, count = ranked(study, names, MAX_ROWS)
    filled = {name for rows in study.samples.values() for name in rows.columns[rows.notna().any()]}
    facts = [name for name in IMAGE_COLUMNS if name in filled]
    paths = [paths_of(study, key, {name: records[name].get(key) for name in names}) for key in shown]
    size, exact = size_of(len(shown), len(names) + 1)
    with ThreadPoolExecutor() as pool:
        strips = [*pool.map(lambda row: strip_of(row, size, exact), paths)]
    gallery = Gallery(names, columns, [IMAGE_COLUMNS[name][0] for name in facts])
    traces = {name: traces_of(frame, shown, gallery.timesteps) for name, frame in study.traces.items()}
    for key, (strip, exist, scaled) in zip(shown, strips, strict=True):
        cells = [
            cell_of(name, records[name].get(key), facts, traces.get(name, {}).get(key)) if exists else None
            for name, exists in zip(names, exist[1:], strict=True)
        ]
        prompt = next(images[key]["prompt"] for images in records.values() if key in images)
        row = {"id": key[0], "sample": int(key[1]), "prompt": prompt, "training": exist[0], "scaled": scaled}
        gallery.rows.append(row | {"file": quote(f"training/{study.stems[key[0]]}.png"), "cells": cells})
        gallery.strips.append(strip)
    if count > len(shown):
        gallery.notes.append(f"{len(shown)} of {count} rows are shown; the other images are in the folder.")
    gallery.notes += [
        *gap("training", [*{row["id"]: row["training"] for row in gallery.rows}.values()]),
        *gap("generated", [exists for _, exist, _ in strips for exists in exist[1:]]),
    ]
    return gallery


def gap(kind: str, exist: list[bool]) -> list[str]:
    """A note on missing images, if any is."""
    missing = f"Missing {kind} images in these rows: {exist.count(False)} of {len(exist)}."
    return [] if all(exist) else [missing]


def side_by_side(study: Study) -> list[dict[str, Any]]:
    """What the gallery shows in columns: the mitigations, then each sweep with all of its points."""
    single = [{"title": name, "names": [name], "color": study.colors[name]} for name in study.single]
    return single + [
        {
            "title": sweep.name, "names": [*sweep.points], "color": study.colors[sweep.name],
            "option": sweep.option, "values": [*map(str, sweep.points.values())],
        } for sweep in study.sweeps
    ]  # fmt: skip


def names_in(columns: list[dict[str, Any]]) -> list[str]:
    """The mitigations in the columns, each once: one may stand by itself and be a point of a sweep."""
    return [*dict.fromkeys(name for column in columns for name in column["names"])]


def ranked(
    study: Study, names: list[str], most: int
) -> tuple[dict[str, Records], list[tuple[str, int]], int]:
    """The first `most` prompts and samples, the most similar ones first, and how many there are in all.

    Before these keys each mitigation's rows by them; the other rows stay in their tables, which need less.
    """
    similar = (study.samples[name][[*KEY, "similarity_own"]] for name in names)
    ordered = [rows.sort_values("similarity_own", ascending=False)[KEY] for rows in similar]
    keys = pd.concat(ordered).drop_duplicates()
    shown, records = pd.MultiIndex.from_frame(keys.head(most)), {}
    for name in names:
        rows = study.samples[name]
        rows = rows[rows["prompt_id"].isin(shown.levels[0])].set_index(KEY)
        records[name] = rows[rows.index.isin(shown)].to_dict("index")
    return records, shown.tolist(), len(keys)


def paths_of(study: Study, key: tuple[str, int], row: dict[str, dict | None]) -> list[Path | None]:
    """Paths of the training image and of each generated one."""
    training = inside(study.folder / "training", f"{study.stems[key[0]]}.png")
    return [training, *(data and inside(study.folder / name, data["image"]) for name, data in row.items())]


def cell_of(name: str, data: dict, facts: list[str], trace: dict | None) -> dict[str, Any]:
    """What the page holds of one image."""
    own = known(data.get("similarity_own"))
    return {
        "own": own and round(own, 4),
        "clip": number(data.get("clip_score")),
        "facts": [
            number(None if data.get(fact) is False else data.get(fact), IMAGE_COLUMNS[fact][1])
            for fact in facts
        ],
        "file": quote(f"{name}/{data['image']}"),
        "transition": known(data.get("transition_timestep")),
        "trace": trace,
    }


def known(value: float | None) -> float | None:
    return None if pd.isna(value) else float(value)


def size_of(rows: int, tiles: int) -> tuple[int, bool]:
    """The greatest width of embedded images, and whether small ones are kept exactly."""
    fitting = int(math.sqrt(PIXELS / max(1, rows * tiles)) // 16 * 16)
    return min(max(SMALLEST, fitting), LARGE, STRIP // tiles), rows * tiles <= EXACT_IMAGES


def strip_of(paths: list[Path | None], size: int, exact: bool) -> tuple[str, list[bool], bool]:
    """The images side by side as base64, which of them exist, and whether any was scaled down."""
    images = [path and thumbnail(path, size) for path in paths]
    tile = max((max(image.size) for image, _ in filter(None, images)), default=1)
    strip = Image.new("RGBA", (tile * len(images), tile))
    for index, (image, _) in ((index, pair) for index, pair in enumerate(images) if pair):
        strip.paste(image, (index * tile + (tile - image.width) // 2, (tile - image.height) // 2))
    exactly = {"lossless": True, "quality": 50, "method": 0}  # a higher effort takes 20 times as long
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", **(exactly if exact and tile <= EXACT else {"quality": 85}))
    exist = [pair is not None for pair in images]
    scaled = any(shrunk for _, shrunk in filter(None, images))
    return base64.b64encode(buffer.getvalue()).decode(), exist, scaled


def thumbnail(path: Path, size: int) -> tuple[Image.Image, bool] | None:
    """The image, no larger than `size`, and whether it was; None if it is missing or cannot be read."""
    try:
        image = decoded(path.read_bytes())
    except Exception:  # image decoders raise many kinds
        return None
    large = max(image.size) > size
    if large:
        image.thumbnail((size, size))
    return image, large


def traces_of(traces: pd.DataFrame, keys: list, timesteps: list[list[float | None]]) -> Records:
    """Per image: its timesteps, differences as bytes of their maximum (255: none), changes of the scale."""
    out, shown = {}, set(keys)
    ordered = traces[traces["prompt_id"].isin({key[0] for key in shown})].sort_values("step")
    for key, positions in ordered.groupby(["prompt_id", "sample"]).indices.items():
        if key not in shown:
            continue
        rows = ordered.iloc[positions]
        times = [*map(known, rows["timestep"].round(1))]
        if times not in timesteps:
            timesteps.append(times)
        size = rows["difference_rms"].to_numpy(float)
        highest = np.nanmax(size, initial=0)
        shares = np.where(np.isnan(size), 255, np.round(size / (highest or 1) * 254)).astype(np.uint8)
        scale = rows["guidance_scale"].to_numpy(float)
        same = (scale[1:] == scale[:-1]) | (np.isnan(scale[1:]) & np.isnan(scale[:-1]))
        changes = [0, *(np.flatnonzero(~same) + 1)]
        out[key] = {
            "times": timesteps.index(times), "max": float(f"{highest:.4g}"),
            "size": base64.b64encode(shares.tobytes()).decode(),
            "scale": [[int(step), known(scale[step])] for step in changes],
        }  # fmt: skip
    return out
