"""One file with the captions of many images, by path or by key.

{path on another's disk: [captions]} beside images is DCR's form of LAION-10k; {key: [captions]} gives shards
and tables other captions than their own, such as 20 of BLIP's for each image. COCO's captions
(`captions_train2017.json`) name the files of their images.
"""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from data.images.stored import WholeFile
from data.remote import fetched, is_remote
from data.sources.kohya import repeats_of
from data.sources.rows import (
    IMAGE_SUFFIXES,
    Row,
    Source,
    count_unused,
    file_id,
    has_image_suffix,
    images_below,
    path_ids,
)

log = logging.getLogger(__name__)
Named = TypeVar("Named", str, Path)


def parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"[/\\]+", path) if part not in ("", "."))


def are_captions(value: Any) -> bool:
    return isinstance(value, str | list)


def captions_by_key(path: Path) -> dict[str, Any]:
    """What the file holds for each key: texts, lists, and perhaps values that are counted later as no text.

    ValueError for a file that is no JSON, with the line, or for another kind of JSON.
    """
    try:
        captions = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if is_coco(captions):
        captions = coco_captions(captions, path)
    if not isinstance(captions, dict) or not any(map(are_captions, captions.values())):
        raise ValueError(f"{path} is no captions file: it must hold {{path or key of an image: [captions]}}")
    return captions


def is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(content.get(name), list) for name in ("images", "annotations")
    )


def coco_captions(content: dict[str, Any], path: Path) -> dict[str, list[str]]:
    """All captions of each image, in the file's order, by the name of the image's file.

    Captions of an image that the file does not list are under that image's id. ValueError for COCO's other
    annotations, such as its instances.
    """
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[str, list[str]] = {}
        for entry in content["annotations"]:
            captions.setdefault(names.get(entry["image_id"], str(entry["image_id"])), []).append(
                entry["caption"]
            )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is one of COCO's files, but not of captions: give its captions_*.json"
        ) from error
    return captions


def is_captions(path: Path) -> bool:
    """Whether a file that no option names holds captions: keys are paths of images, values texts or lists."""
    try:
        captions = captions_by_key(path)
    except ValueError:
        return False
    return are_files(captions) and all(map(are_captions, captions.values()))


def are_files(keys: Iterable[str]) -> bool:
    """Whether all keys are names or paths of images."""
    suffixes = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
    return all(key.lower().endswith(suffixes) for key in keys)


def captions_file(name: str, folder: Path) -> Path:
    """The file of that path, else of that name in a folder of data; FileNotFoundError if there is neither."""
    if is_remote(name):
        return fetched(name)
    if Path(name).is_file():
        return Path(name)
    if not (folder / name).is_file():
        where = f"here or in {folder}" if folder.is_dir() else "here: give its path"
        raise FileNotFoundError(f"no captions file {name!r}, {where}")
    return folder / name


def find_captions(folder: Path) -> Path | None:
    """The one captions file in a folder; ValueError if there are two or more."""
    files = [path for path in sorted(folder.glob("*.json")) if not path.name.endswith("_stats.json")]
    # beside an image of the same name it is that image's own; do not read thousands of them
    stems = {path.stem for path in folder.iterdir() if has_image_suffix(path)}
    files = [path for path in files if path.stem not in stems and is_captions(path)]
    if len(files) > 1:
        raise ValueError(
            f"{folder} has {len(files)} captions files, {', '.join(path.name for path in files)}: "
            f"name one, as '{folder}?captions={files[0].name}'"
        )
    return files[0] if files else None


def open_captions(folder: Path, file: Path, skipped: Counter) -> Source:
    """Match the file's paths to the images below the folder; ValueError where it fits none."""
    captions = captions_by_key(file)
    images = images_below(folder)
    pairs = dict(matched({path: parts(str(path)) for path in images}, {key: parts(key) for key in captions}))
    if not pairs:
        raise ValueError(
            f"{file}: none of its {len(captions)} paths, such as {next(iter(captions))!r}, ends like one of "
            f"the {len(images)} images in {folder}"
        )
    log.info("%s: %d of %d captions match the %d images", file, len(pairs), len(captions), len(images))
    count_unused(str(file), "without caption", [path for path in images if path not in pairs], skipped)
    used = set(pairs.values())
    count_unused(str(file), "captions without image", [key for key in captions if key not in used], skipped)
    layout = f"images with a captions file ({file.name}: {len(pairs):,} of {len(captions):,} match)"
    ids = path_ids(images, folder)
    repeats = repeats_of(folder, images)
    rows = (
        Row(ids[path], WholeFile(str(path)), captions[pairs[path]], repeats=repeats.get(path, 1))
        for path in images
        if path in pairs
    )
    return Source(layout, rows, len(pairs))


def with_captions(source: Source, file: Path, skipped: Counter) -> Source:
    """The source with captions of a file, {id: [captions]}; rows that the file lacks keep their own.

    Ids are those of the rows: keys in shards, ids or row numbers in tables. Where all keys are names of image
    files, their suffixes are left out. Once the rows are read, the notes say how many match.

    Raises ValueError if none matches, and at once for a file of another kind.
    """
    captions = captions_by_key(file)
    by_id = {file_id(key): each for key, each in captions.items()}
    if are_files(captions):  # whose suffixes no key of a shard has
        by_id = {key.rpartition(".")[0]: each for key, each in by_id.items()}
    if len(by_id) < len(captions):
        raise ValueError(
            f"{file}: {len(captions) - len(by_id)} of its keys are the same as others, as file names"
        )
    notes = list(source.notes)
    return source._replace(rows=replaced(source.rows, by_id, file, skipped, notes), notes=notes)


def replaced(
    rows: Iterator[Row], captions: dict[str, Any], file: Path, skipped: Counter, notes: list[str]
) -> Iterator[Row]:
    count, first, unused = 0, "", set(captions)
    for row in rows:
        count, first = count + 1, first or row.id
        unused.discard(row.id)
        yield row._replace(captions=captions[row.id]) if row.id in captions else row
    if len(unused) == len(captions):
        raise ValueError(
            f"{file}: none of its {len(captions)} keys, such as {next(iter(captions))!r}, is the id of one "
            f"of the {count} images, such as {first!r}"
        )
    count_unused(str(file), "captions without image", sorted(unused), skipped)
    used = len(captions) - len(unused)
    notes.append(f"captions of {file.name}: {used:,} of {len(captions):,} match")
    log.info("%s: %d of %d captions match the %d images", file, used, len(captions), count)


def matched(
    images: dict[Path, tuple[str, ...]], keys: dict[str, tuple[str, ...]], length: int = 1
) -> Iterator[tuple[Path, str]]:
    """Pairs whose last `length` parts are equal, or more parts where several paths share these."""
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


def by_tail(paths: dict[Named, tuple[str, ...]], length: int) -> dict[tuple[str, ...], list[Named]]:
    tails = defaultdict(list)
    for path, split in paths.items():
        tails[split[-length:]].append(path)
    return tails
