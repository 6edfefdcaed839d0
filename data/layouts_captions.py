"""Images with one captions file, {path on another's disk: [captions]}: DCR's form of LAION-10k."""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from data.layouts_rows import IMAGE_SUFFIXES, Row, Source, images_below, path_ids

log = logging.getLogger(__name__)
Place = TypeVar("Place", str, Path)


def parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"[/\\]+", path) if part not in ("", "."))


def captions_in(path: Path) -> dict[str, Any] | None:
    """Captions by image path, if the file holds nothing else; None if it is another kind of JSON."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not found:
        return None
    images = all(key.lower().endswith(tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)) for key in found)
    return found if images and all(isinstance(value, str | list) for value in found.values()) else None


def find_captions(folder: Path) -> Path | None:
    """The one captions file in a folder; ValueError if there are two or more."""
    files = [path for path in sorted(folder.glob("*.json")) if not path.name.endswith("_stats.json")]
    # beside an image of the same name it is that image's own; do not read thousands of them
    stems = {path.stem for path in folder.iterdir() if path.suffix[1:].lower() in IMAGE_SUFFIXES}
    found = [path for path in files if path.stem not in stems and captions_in(path) is not None]
    if len(found) > 1:
        raise ValueError(
            f"{folder} has {len(found)} captions files, {', '.join(path.name for path in found)}: "
            f"name one, as '{folder}?captions={found[0].name}'"
        )
    return found[0] if found else None


def open_captions(folder: Path, file: Path, skipped: Counter) -> Source:
    """Match the file's paths to the images below the folder; ValueError where it fits none."""
    captions = captions_in(file)
    if captions is None:
        raise ValueError(f"{file} is no captions file: it must hold {{image path: [captions]}}")
    images = images_below(folder)
    pairs = dict(matched({path: parts(str(path)) for path in images}, {key: parts(key) for key in captions}))
    if not pairs:
        raise ValueError(
            f"{file}: none of its {len(captions)} paths, such as {next(iter(captions))!r}, ends like one of "
            f"the {len(images)} images in {folder}"
        )
    log.info("%s: %d of %d captions match the %d images", file, len(pairs), len(captions), len(images))
    for reason, count in (("without caption", len(images)), ("captions without image", len(captions))):
        if lost := count - len(pairs):
            skipped[reason] += lost
    layout = f"images with a captions file ({file.name}: {len(pairs):,} of {len(captions):,} match)"
    return Source(layout, rows_of(images, folder, pairs, captions), len(pairs))


def rows_of(
    images: list[Path], folder: Path, pairs: dict[Path, str], captions: dict[str, Any]
) -> Iterator[Row]:
    ids = path_ids(images, folder)
    for path in images:
        if path in pairs:
            yield Row(ids[path], path.read_bytes(), captions[pairs[path]])


def matched(
    images: dict[Path, tuple[str, ...]], keys: dict[str, tuple[str, ...]], length: int = 1
) -> Iterator[tuple[Path, str]]:
    """Pairs that end alike in their last `length` parts, or in more where several do; others stay apart."""
    image_tails, key_tails = by_tail(images, length), by_tail(keys, length)
    for tail in image_tails.keys() & key_tails.keys():
        some_images, some_keys = image_tails[tail], key_tails[tail]
        if len(some_images) == 1 and len(some_keys) == 1:
            yield some_images[0], some_keys[0]
        elif len(tail) == length:  # else the paths have no more parts to tell them apart
            yield from matched(
                {path: images[path] for path in some_images},
                {key: keys[key] for key in some_keys},
                length + 1,
            )


def by_tail(paths: dict[Place, tuple[str, ...]], length: int) -> dict[tuple[str, ...], list[Place]]:
    tails = defaultdict(list)
    for path, split in paths.items():
        tails[split[-length:]].append(path)
    return tails
