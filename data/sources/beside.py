"""Captions in files beside their images."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.sources.rows import caption_in_json, count_unused

CAPTION_SUFFIXES = (".txt", ".TXT", ".caption")


def beside(path: Path) -> Any:
    """The caption next to an image: its `.txt`, else its `.caption`, else the `caption` in its `.json`."""
    for suffix in CAPTION_SUFFIXES:
        if (text := path.with_suffix(suffix)).is_file():
            return text.read_bytes()
    described = path.with_suffix(".json")
    return caption_in_json(described.read_bytes()) if described.is_file() else None


def is_caption(path: Path) -> bool:
    return path.suffix in CAPTION_SUFFIXES and not path.name.startswith(".")


def count_lone(folder: Path, images: list[Path], captions: Iterable[Path], skipped: Counter) -> None:
    """Count the text files that stand beside no image of their name."""
    names = {path.with_suffix("") for path in images}
    lone = [path for path in captions if path.with_suffix("") not in names]
    count_unused(str(folder), "captions without image", lone, skipped)
