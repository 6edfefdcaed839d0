"""A page of generated images beside the training images that they are near to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer.report.gallery import size_of, strip_of
from infer.report.rendering import WEB, write_page


@dataclass(frozen=True)
class Pair:
    """Images that stand side by side, and what is said of them.

    Attributes:
        title: the prompt.
        images: path of each image by its caption.
        lines: facts, one a line.
        mark: whether it is a copy.
    """

    title: str
    images: dict[str, Path]
    lines: list[str]
    mark: bool


@dataclass(frozen=True)
class Strip:
    """A pair as the page embeds it: all of its images as one WebP in base64."""

    pair: Pair
    captions: list[str]
    webp: str


def strips_of(pairs: Sequence[Pair]) -> list[Strip]:
    """Each pair's images side by side, with a gap where one is missing."""
    size, exact = size_of(len(pairs), max((len(pair.images) for pair in pairs), default=1))
    return [Strip(pair, [*pair.images], strip_of([*pair.images.values()], size, exact)[0]) for pair in pairs]


def write_pairs(
    path: Path, title: str, headline: str, facts: dict[str, str], notes: Sequence[str], pairs: Sequence[Pair],
    template: Path = WEB / "pairs.html.j2", **more: Any,
) -> Path:  # fmt: skip
    """Write a page that is complete in itself; its path.

    Args:
        path: of the page.
        title: above the headline.
        headline: the finding.
        facts: values by their names.
        notes: what the finding rests on.
        pairs: in the order of the page.
        template: `pairs.html.j2`, or one that extends it, which takes `more`.
    """
    return write_page(
        path, template, title=title, headline=headline, facts=facts, notes=notes, strips=strips_of(pairs),
        **more,
    )  # fmt: skip
