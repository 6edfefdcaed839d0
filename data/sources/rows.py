"""What every layout of training data gives, and the rules for ids that they share."""

import glob
import hashlib
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.images.stored import Stored, WholeFile
from data.remote import is_remote, places

log = logging.getLogger(__name__)
# In a tar the first of these counts, where a sample has several.
IMAGE_SUFFIXES = ("webp", "png", "jpg", "jpeg", "jfif", "gif", "bmp", "avif")
UNREAD_SUFFIXES = {"tif", "tiff", "heic", "heif", "jxl", "jp2", "psd", "svg", "ico", "ppm", "tga"}
NOT_READ = "images in a format that is not read"
ARCHIVES = (".zip", ".7z", ".rar", ".tar.bz2", ".tar.xz", ".tar.zst")  # which are not read either
MASKS = ("-masklabel", "-condlabel")  # ends of the names of OneTrainer's masks and conditions
NAMED = 5  # of each reason this many are named in the log
SPLITS = ("train", "val", "valid", "validation", "test")
LONGEST_ID = 120  # bytes; a file name may have 255, and what is made from an id adds a seed and a suffix


class Row(NamedTuple):
    """One entry as it is on disk: nothing of it is checked, and image and captions may be missing.

    `label` is the name of its class, where the layout has classes; `missing` is the reason counted for a row
    without an image, `detail` what the log says of a row that lacks something; `repeats` how often the source
    wants it shown in a pass.
    """

    id: str
    image: Stored | None
    captions: Any
    label: str | None = None
    missing: str = "without image"
    detail: str = ""
    repeats: int = 1


class Source(NamedTuple):
    """An opened source: the layout in words, its rows, and how many there are where that is known.

    `stats` are sums of what img2dataset wrote beside its shards; `notes` is what is known of the layout only
    once the rows have been read.
    """

    layout: str
    rows: Iterator[Row]
    total: int | None = None
    stats: Counter | None = None
    notes: Sequence[str] = ()


def clean(text: str) -> str:
    """Half surrogates, which no file can hold, become U+FFFD; a byte order mark in front goes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").removeprefix("\ufeff")


def file_id(key: str) -> str:
    """A key from a tar, table or path as a safe file name: no separator, no leading dot, not too long."""
    name = re.sub(r"[/\\\0\r\n]+", "_", clean(key)).strip().lstrip("._")
    if name and len(name.encode()) <= LONGEST_ID:
        return name
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{name[: LONGEST_ID // 8]}-{digest}" if name else f"k{digest}"


def path_ids(paths: Iterable[Path], root: Path) -> dict[Path, str]:
    """Ids of files below a folder: the stem; for those that share it, the way to it; then with its suffix."""

    def way(path: Path) -> str:
        return "_".join(path.relative_to(root).with_suffix("").parts)

    def digest(path: Path) -> str:
        return hashlib.sha256(os.fsencode(path.relative_to(root))).hexdigest()[:12]

    ids: dict[Path, str] = {}
    left = list(paths)
    for name in (lambda path: path.stem, way, lambda path: f"{way(path)}_{path.suffix[1:]}"):
        tried = {path: file_id(name(path)) for path in left}
        count = Counter([*ids.values(), *tried.values()])
        ids |= {path: key for path, key in tried.items() if count[key] == 1}
        left = [path for path in left if path not in ids]
    return ids | {path: file_id(f"{path.stem}_{digest(path)}") for path in left}


def file_rows(
    paths: Sequence[Path], root: Path, caption: Callable, label: Callable = lambda path: None,
    repeats: Callable = lambda path: 1,
) -> Iterator[Row]:  # fmt: skip
    """A row for each image file below `root`, with the caption, class and repeats that the path gives."""
    ids = path_ids(paths, root)
    for path in paths:
        image = WholeFile(str(path))
        yield Row(ids[path], image, caption(path), label(path), repeats=repeats(path))


def is_image(path: Path) -> bool:
    """By its suffix; masks, and hidden files such as the `._a.jpg` that macOS leaves, are none."""
    return has_image_suffix(path) and not path.name.startswith(".") and not is_mask(path)


def has_image_suffix(path: Path) -> bool:
    return path.suffix[1:].lower() in IMAGE_SUFFIXES


def is_mask(path: Path) -> bool:
    """Whether OneTrainer has it beside an image: where a loss counts, or what the image is made from."""
    return has_image_suffix(path) and path.stem.endswith(MASKS)


def count_unused(
    source: str, reason: str, names: Sequence[str | Path], skipped: Counter, most: float = math.inf
) -> None:
    """Count files that a layout leaves aside, and name the first in the log.

    `most`: where as many were counted already, of a thousand shards or of earlier epochs, none is named.
    """
    if names:
        few = skipped[reason] < most
        skipped[reason] += len(names)
        if few:
            log.warning(
                "%s: not used: %d %s, such as %s", source, len(names), reason, [*map(str, names[:NAMED])]
            )


def files_below(folder: Path, wanted: Callable[[Path], bool] = lambda path: True) -> list[Path]:
    """Files at any depth, without hidden ones; links to folders elsewhere are followed, once each.

    Links that lead nowhere are among them: as images they cannot be read, and are counted.
    """
    paths: list[Path] = []
    seen: set[str] = set()
    tops = [str(folder)]
    for top in tops:  # it grows: linked folders come after the folder's own
        for where, folders, files in os.walk(top):
            if (real := os.path.realpath(where)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            tops += [path for name in folders if os.path.islink(path := os.path.join(where, name))]
            paths += [Path(where, name) for name in files if not name.startswith(".")]
    return sorted(path for path in paths if wanted(path) and (path.is_file() or path.is_symlink()))


def matching_files(pattern: str) -> list[str]:
    """Files of braces and globs (`{00000..00009}.tar`), sorted; what exists is taken to the letter.

    Of a URL the places where its files lie once they are read.

    FileNotFoundError for a part without any.
    """
    from braceexpand import braceexpand

    if is_remote(pattern):
        return places(pattern)
    folder = Path(pattern)
    while not folder.exists():
        folder = folder.parent
    if folder.is_file():
        return [pattern]
    rest = os.path.relpath(pattern, folder) if folder != Path() else pattern
    paths = set()
    for part in braceexpand(rest):
        names = [part] if (folder / part).exists() else glob.glob(part, root_dir=folder)
        if not names:
            raise FileNotFoundError(f"no file matches {str(folder / part)!r}")
        paths.update(str(folder / name) for name in names)
    return sorted(paths)


def images_below(folder: Path) -> list[Path]:
    return files_below(folder, is_image)


def caption_in_json(content: bytes | str | None) -> Any:
    """The field `caption` of a JSON object; None if there is none, or the text is no JSON.

    Bytes that are in no encoding of JSON are returned as they are, to be counted as such.
    """
    try:
        value = json.loads(content or b"null")
    except UnicodeDecodeError:
        return content
    except (ValueError, RecursionError):
        return None
    return value.get("caption") if isinstance(value, dict) else None
