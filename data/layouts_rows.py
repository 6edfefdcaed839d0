"""What every layout of training data gives, and the rules for ids that they share."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

IMAGE_SUFFIXES = ("webp", "png", "jpg", "jpeg")
LONGEST_ID = 120  # bytes; a file name may have 255, and what is made from an id adds a seed and a suffix


class Row(NamedTuple):
    """One entry as it is on disk: nothing of it is checked, and image and captions may be missing."""

    id: str
    image: bytes | None
    captions: Any


class Source(NamedTuple):
    """An opened source: the layout in words, its rows, and how many there are where that is known.

    `stats` are sums of what img2dataset wrote beside its shards.
    """

    layout: str
    rows: Iterator[Row]
    total: int | None = None
    stats: Counter | None = None


def file_id(key: str) -> str:
    """A key from a tar, table or path as a safe file name: no separator, no leading dot, not too long."""
    name = re.sub(r"[/\\\0\r\n]+", "_", key).strip().lstrip("._")
    if name and len(name.encode()) <= LONGEST_ID:
        return name
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{name[: LONGEST_ID // 8]}-{digest}" if name else f"k{digest}"


def path_ids(paths: Iterable[Path], root: Path) -> dict[Path, str]:
    """Ids of files below a folder: the stem, or the whole way to it for stems that stand more than once."""
    paths = list(paths)
    stems = Counter(path.stem for path in paths)
    return {
        path: file_id(
            path.stem if stems[path.stem] == 1 else "_".join(path.relative_to(root).with_suffix("").parts)
        )
        for path in paths
    }


def is_image(path: Path) -> bool:
    """By its suffix; hidden files, such as the `._a.jpg` that macOS leaves, are none."""
    return path.suffix[1:].lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if is_image(path) and path.is_file())


def caption_in_json(content: bytes | str | None) -> Any:
    """The field `caption` of a JSON object; None if there is none, or the text is no JSON."""
    try:
        found = json.loads(content or b"null")
    except (ValueError, RecursionError):
        return None
    return found.get("caption") if isinstance(found, dict) else None
