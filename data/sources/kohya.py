"""Folders for Kohya's scripts: the images in `10_zxq woman` are shown 10 times in a pass, as "zxq woman".

A folder of such folders, or a project with them in `img` and regularization images in `reg`. A caption beside
an image (`.txt`, `.caption`) replaces that of its folder's name.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.sources.beside import beside, count_lone, is_caption
from data.sources.rows import Source, count_unused, file_rows, files_below

log = logging.getLogger(__name__)
REGULARIZATION = "regularization images (reg/): give that folder as data.ordinary"


class Folder(NamedTuple):
    """What a folder's name says: how often its images are shown in a pass, and their class prompt."""

    repeats: int
    prompt: str


def named(folder: Path) -> Folder | None:
    """`10_zxq woman` as (10, "zxq woman"); None for other names, also for 2024_paris: that is a year."""
    match = re.fullmatch(r"([1-9]\d{0,2})_(.*)", folder.name)
    return Folder(int(match[1]), match[2].strip()) if match else None


def numbered_folders(root: Path, images: Sequence[Path]) -> dict[Path, Folder]:
    """The folders directly below `root` with images in them whose names have a number of repeats."""
    folders = sorted({path.parent for path in images if path.parent.parent == root})
    return {folder: name for folder in folders if (name := named(folder))}


def find_root(folder: Path, images: Sequence[Path]) -> Path | None:
    """Which folder holds the numbered ones: this one, or its `img`; None if neither does."""
    return next((root for root in (folder, folder / "img") if numbered_folders(root, images)), None)


def repeats_of(folder: Path, images: Sequence[Path]) -> dict[Path, int]:
    """How often each image is shown in a pass, without those for which no folder says it."""
    root = find_root(folder, images)
    folders = numbered_folders(root, images) if root else {}
    return {path: folders[path.parent].repeats for path in images if path.parent in folders}


def open_kohya(folder: Path, root: Path, images: list[Path], skipped: Counter) -> Source:
    """Images of the numbered folders below `root`; those of other folders are counted.

    ValueError where a number is 0: then the numbers may be those of classes.
    """
    folders = numbered_folders(root, images)
    check(root, folders, {path.parent for path in images if path.parent.parent == root})
    paths = [path for path in images if path.parent in folders]
    others = [path for path in images if path.parent not in folders]
    regular = [path for path in others if path.is_relative_to(folder / "reg")]
    count_unused(str(folder), REGULARIZATION, regular, skipped)
    rest = sorted({*others} - {*regular})
    count_unused(str(folder), "images in no folder with a number of repeats", rest, skipped)
    count_lone(folder, images, files_below(root, is_caption), skipped)

    def caption(path: Path) -> Any:
        own = beside(path)
        return folders[path.parent].prompt if own is None else own

    rows = file_rows(
        paths, folder, caption, lambda path: folders[path.parent].prompt or None,
        lambda path: folders[path.parent].repeats,
    )  # fmt: skip
    return Source(layout(folders, paths), rows, len(paths))


def layout(folders: dict[Path, Folder], images: Sequence[Path]) -> str:
    counts = Counter(path.parent for path in images)
    each = [
        f"{counts[folder]:,} images of {name.prompt!r} x {name.repeats}" for folder, name in folders.items()
    ]
    return f"Kohya's folders: {', '.join(each[:4])}{', ...' if len(each) > 4 else ''}"


def check(root: Path, folders: dict[Path, Folder], every: set[Path]) -> None:
    """ValueError, or a warning, where the numbers in the names look like those of classes."""
    if zeros := sorted(folder.name for folder in every if re.match(r"0+_", folder.name)):
        raise ValueError(
            f"{zeros[0]!r} in {root} would be shown 0 times, as folders for Kohya's scripts have it: remove "
            "it, or, if these are numbers of classes, rename the folders without them"
        )
    numbers = sorted(name.repeats for name in folders.values())
    if len(numbers) > 2 and numbers == [*range(numbers[0], numbers[0] + len(numbers))]:
        often = max(folders, key=lambda folder: folders[folder].repeats)
        log.warning(
            "%s: THE NUMBERS OF ITS FOLDERS ARE READ AS REPEATS: images of %r are shown %d times in a pass. "
            "If they are numbers of classes, rename the folders without them",
            root, often.name, folders[often].repeats,
        )  # fmt: skip
