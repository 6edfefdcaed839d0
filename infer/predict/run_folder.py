"""A predict run folder: images, one row per image, one trace row per image and step; written in atomic parts.

A part (`parts/*.parquet`) is written after its images, by one rank. `merge` turns all parts into
`samples.parquet` and `traces.parquet`. Whatever is in either is done and not generated again.
"""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import yaml
from PIL import Image

from data.files import (
    digest,
    read_object,
    redacted,
    remove,
    remove_temporary_files,
    write_atomically,
    write_json,
)
from data.table_files import read_table

log = logging.getLogger(__name__)
KEY = ["prompt_id", "sample"]
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
LONGEST = 150  # bytes of an id in a file name


def file_stems(ids: Iterable[str]) -> dict[str, str]:
    """The file name of each id, without what follows it: no two are one on a disk that ignores case.

    An id stands for itself, but one that is very long, or that differs from another in case or in how its
    letters are composed only, is shortened and gets a digest.
    """
    stems = {key: unicodedata.normalize("NFC", key).casefold() for key in ids}
    often = Counter(stems.values())
    return {
        key: key
        if often[stem] == 1 and len(key.encode()) <= LONGEST
        else f"{key.encode()[:LONGEST].decode(errors='ignore')}~{digest(key)[:8]}"
        for key, stem in stems.items()
    }


def is_whole(path: Path) -> bool:
    """Whether the file is there, with a PNG's end."""
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:
        return False


def is_intact(path: Path) -> bool:
    """Whether the file is a whole PNG whose chunks have their checksums; nothing is decoded."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except Exception:  # image decoders raise many kinds
        return False
    return is_whole(path)


def save_image(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: image.save(part))


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder this run's own (`config.yaml`).

    ValueError if it is no predict run, or holds images of one with other settings, which the error names.
    """
    path, identity = folder / "config.yaml", redacted(identity)
    if path.exists():
        before = read_config(folder)
        changed = differences(before, identity)
        if changed and done(folder):
            raise ValueError(
                f"{folder} holds a different run ({'; '.join(changed)}): choose another folder, or delete it"
            )
        if changed:  # no image was written
            remove(folder / "parts")
            remove(folder / "samples.parquet")
            remove(folder / "traces.parquet")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_text(yaml.safe_dump(identity, sort_keys=False)))


def read_config(folder: Path) -> dict[str, Any]:
    """What the run holds, as `claim` wrote it; ValueError where it is no predict run."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError):  # such as another program's objects
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("mitigations"), list):
        raise ValueError(f"{folder} holds something else than a predict run: choose another folder")
    return config


def differences(before: Any, after: Any, name: str = "") -> list[str]:
    """`dotted.name: before -> after` of each setting that differs; of another class the classes alone."""
    if before == after or same_path(before, after):
        return []
    if isinstance(before, list) and isinstance(after, list):
        before, after = dict(enumerate(before)), dict(enumerate(after))
    nested = isinstance(before, dict) and isinstance(after, dict)
    if not nested or before.get("class_path") != after.get("class_path"):
        return [f"{name}: {in_words(before)} -> {in_words(after)}"]
    if "class_path" in before:
        before, after = before.get("init_args", {}), after.get("init_args", {})
    keys, within = sorted(before.keys() | after.keys()), f"{name}." if name else ""
    return [line for k in keys for line in differences(before.get(k), after.get(k), f"{within}{k}")]


def same_path(one: Any, other: Any) -> bool:
    """Two spellings of the path of one file or folder that is there."""
    paths = isinstance(one, str) and isinstance(other, str) and os.path.exists(one) and os.path.exists(other)
    return paths and os.path.samefile(one, other)


def in_words(value: Any) -> str:
    """A class by its name, without its settings."""
    is_class = isinstance(value, dict) and "class_path" in value
    return value["class_path"].rpartition(".")[2] if is_class else repr(value)


def write_table(rows: pd.DataFrame, path: Path) -> None:
    write_atomically(path, lambda part: rows.to_parquet(part, index=False))


def write_part(folder: Path, samples: list[dict], traces: pd.DataFrame) -> None:
    """Write one batch's rows, after its images. Traces first: a sample row means that all is there."""
    parts, name = folder / "parts", uuid4().hex
    parts.mkdir(parents=True, exist_ok=True)
    write_table(traces, parts / f"{name}.traces.parquet")
    write_table(pd.DataFrame(samples), parts / f"{name}.samples.parquet")


def read_parquet(path: Path, *columns: str) -> pd.DataFrame:
    """The rows of a run folder's file; ValueError, with its name, where it is cut or lacks a column."""
    return read_table(path, columns, "delete it, and predict makes again what it listed")


def inside(folder: Path, relative: str) -> Path:
    """The path that a data file names; ValueError if it leads out of the folder."""
    path = (folder / str(relative)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{relative!r} points outside of {folder}")
    return path


def read_rows(folder: Path, kind: str, good: Callable[[Path], bool] = is_whole) -> pd.DataFrame:
    """All `samples` or `traces` rows, merged or not; without samples whose image is not good."""
    paths = [folder / f"{kind}.parquet", *sorted((folder / "parts").glob(f"*.{kind}.parquet"))]
    key = KEY if kind == "samples" else [*KEY, "step"]
    columns = [*key, "image"] if kind == "samples" else key
    tables = [read_parquet(path, *columns) for path in paths if path.exists()]
    if not tables:
        return pd.DataFrame()
    rows = pd.concat(tables, ignore_index=True).drop_duplicates(key, keep="last")
    if kind == "samples":
        rows = rows[[good(inside(folder, image)) for image in rows["image"]]]
    return rows


def done(folder: Path) -> set[tuple[str, int]]:
    """(prompt id, sample) of every finished image, but for those that are cut or damaged."""
    rows = read_rows(folder, "samples", is_intact)
    return set() if rows.empty else set(zip(rows["prompt_id"], rows["sample"], strict=True))


def merge(folder: Path, order: Iterable[tuple[str, int]]) -> pd.DataFrame:
    """Write `samples.parquet` and `traces.parquet` in the given order, drop the parts; returns samples."""
    position = {key: number for number, key in enumerate(order)}
    tables = {kind: read_rows(folder, kind) for kind in ("traces", "samples")}
    if tables["samples"].empty:
        return tables["samples"]
    for kind, rows in tables.items():
        if rows.empty:
            log.warning("%s has lost its %s: only new images bring them back", folder, kind)
            continue
        rows = rows.assign(position=pd.MultiIndex.from_frame(rows[KEY]).map(position))
        by = ["position", "step"] if kind == "traces" else ["position"]
        rows = rows.dropna(subset="position").sort_values(by, ignore_index=True)
        tables[kind] = rows.drop(columns="position")
        write_table(tables[kind], folder / f"{kind}.parquet")
    remove(folder / "parts")
    remove_temporary_files(folder)
    return tables["samples"]


def write_summary(
    folder: Path, rows: pd.DataFrame, has_transition: bool, has_alternative: bool, commit: str | None
) -> None:
    """`summary.json`: counts, cost, when the transition fired, what failed, and the commit of the code."""
    transition = rows["transition_timestep"].astype(float)
    fired, gated = int(transition.notna().sum()), int(rows["gated"].sum())
    without_alternative = int(rows["alternative_prompt"].isna().sum())
    summary = {
        "mitigation": rows["mitigation"].iloc[0],
        "images": len(rows),
        "nfe_mean": rows["nfe"].mean(),
        "seconds_per_image": rows["seconds"].mean(),
        "peak_memory_gib": None if pd.isna(peak := rows["peak_memory_gib"].max()) else peak,
        "watched": rows["watched"].iloc[0],
        "fired": fired,
        "gated": gated if has_transition else None,
        "never_fired": len(rows) - gated - fired if has_transition else None,
        "transition_timestep_median": transition.median() if fired else None,
        "without_alternative": without_alternative if has_alternative else None,
        "failed": int(rows["failed_step"].notna().sum()),
        "commit": commit,
    }
    if "attempts" in rows:  # of a guard
        summary["made_again"] = int((rows["attempts"] > 1).sum())
        summary["attempts_mean"], summary["refused"] = rows["attempts"].mean(), int(rows["refused"].sum())
    write_json(folder / "summary.json", summary)


def summary_line(folder: Path) -> str:
    """The summary in a line."""
    summary = read_object(folder / "summary.json")
    if not summary:
        return "no images"
    line = f"{summary['images']} images, {summary['nfe_mean']:.1f} UNet evaluations each"
    if summary["never_fired"] is not None:
        line += f"; the transition came for {summary['fired']}"
        if summary["fired"]:
            line += f", median t = {summary['transition_timestep_median']:g}"
        if summary["never_fired"]:
            line += f", and NEVER for {summary['never_fired']}: they kept the scale before it to the end"
        if summary["gated"]:
            line += f"; {summary['gated']} were below the gate and had ordinary guidance"
    if summary["without_alternative"]:
        line += f"; {summary['without_alternative']} had no alternative and took the plain rule"
    if "refused" in summary:
        line += f"; {summary['made_again']} were too near to a training image and made again"
        line += f"; {summary['refused']} stayed so and are REFUSED: grey images, left out of scores"
    if summary["failed"]:
        line += (
            f"; {summary['failed']} FAILED (latents or pixels not finite): black images, left out of scores"
        )
    return line


def check_images(folder: Path) -> None:
    """ValueError when every image of a finished run failed."""
    summary = read_object(folder / "summary.json")
    if summary and summary["failed"] == summary["images"]:
        raise ValueError("every image failed: latents or pixels are not finite; try --model.dtype float32")
