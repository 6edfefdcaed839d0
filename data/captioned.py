"""Captioned images from disk or the Hub, as samples {id, image, captions}.

Of images that lie on disk only the locations are held. What cannot be read is skipped, counted and named in
the log (`skipped`), never silently lost.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data.sources.image import decoded, problem
from data.sources.layouts import open_source, with_options
from data.sources.rows import NAMED, Row, clean
from data.sources.stored import Stored, read

log = logging.getLogger(__name__)
CHUNK = 512  # rows examined at a time
THREADS = min(16, os.cpu_count() or 1)


class UnreadableImage(ValueError):
    """An image that cannot be decoded, with its id and why.

    With one argument that is the whole message: so torch raises the errors of a DataLoader's workers again.
    """

    def __init__(self, key: str, reason: str | None = None):
        self.id, self.reason = key, reason
        super().__init__(key if reason is None else f"image {key!r} cannot be decoded: {reason}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One captioned image: id (such as its key in a shard), where its bytes are, first caption, all captions.

    `label` is its class in words ("tench"), where the source has classes.
    """

    id: str
    stored: Stored = field(repr=False)
    caption: str
    captions: tuple[str, ...] = ()
    label: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "captions", self.captions or (self.caption,))  # frozen

    @property
    def image(self) -> bytes:
        """The encoded image, read from disk each time."""
        return read(self.stored)

    def rgb(self, resolution: int | None = None) -> Image.Image:
        """Decoded to RGB of 8 bits; `resolution`: resized on the short side, centre-cropped.

        UnreadableImage where that is impossible.
        """
        try:
            image = decoded(self.image)
        except Exception as error:  # of PIL's half a dozen kinds, or of the disk
            raise UnreadableImage(self.id, str(error).split(" <_io")[0] or type(error).__name__) from error
        if resolution and image.size != (resolution, resolution):
            image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
        return image

    def pixels(self, resolution: int) -> np.ndarray:
        """uint8 of shape (3, resolution, resolution); UnreadableImage where that is impossible."""
        return np.asarray(self.rgb(resolution)).transpose(2, 0, 1).copy()


@dataclass
class CaptionedImages:
    """Samples in a fixed order, and why others were left out (reason -> how many)."""

    samples: list[Sample]
    skipped: Counter = field(default_factory=Counter)
    layouts: list[str] = field(default_factory=list)  # of each source, with where its captions come from

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @cached_property
    def position(self) -> dict[str, int]:
        """The index of each id."""
        return {sample.id: index for index, sample in enumerate(self.samples)}

    def report(self) -> str:
        lost = listed(self.skipped)
        return f"{len(self):,} captioned images" + (f" (skipped: {lost})" if lost else "")


def listed(skipped: Counter) -> str:
    """How many of each reason, as a part of a sentence; empty if there are none."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))


def decoded_text(text: bytes) -> tuple[str | None, str]:
    """A caption and its encoding: UTF-8, else UTF-16 or cp1252 where that is sure, else None."""
    wide = max(text[1::2].count(0), text[::2].count(0)) * 3 > len(text)  # half of each Latin letter is 0
    if text.startswith((b"\xff\xfe", b"\xfe\xff")) or wide:
        order = "" if text[:1] in (b"\xff", b"\xfe") else "-le" if text[1::2].count(0) else "-be"
        return text.decode(f"utf-16{order}", "replace"), "UTF-16"
    try:
        return text.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        # single letters of western Europe among ASCII; two and more together may be of any encoding
        alone = not re.search(rb"[\x80-\xff]{2}|[\x80-\x90\x98-\x9f]", text)
        return (text.decode("cp1252"), "cp1252") if alone else (None, "?")


def texts(captions: Any) -> tuple[tuple[str, ...], str]:
    """All captions that are text, stripped, not empty, and such as UTF-8 can hold; their encoding."""
    each, encoding = captions if isinstance(captions, list | tuple) else [captions], "UTF-8"
    if isinstance(captions, bytes):
        text, encoding = decoded_text(captions)
        each = [text]
    stripped = (clean(text).strip() for text in each if isinstance(text, str))
    return tuple(filter(None, stripped)), encoding


def examined(row: Row) -> tuple[Sample | None, str, str]:
    """The sample, and its captions' encoding; or None, why it cannot be used, and the details."""
    captions, encoding = texts(row.captions)
    if row.image is None:
        return None, row.missing, row.detail
    if encoding == "?":
        return None, "captions that are not UTF-8", ""
    if not captions:
        no_text = row.captions and not isinstance(row.captions, str | bytes)
        return None, "captions that are no text" if no_text else "without caption", row.detail
    try:
        image = read(row.image)
    except OSError as error:
        return None, "unreadable images", str(error)
    if image is None:
        return None, row.missing, row.detail
    if reason := problem(image):
        return None, *reason
    return Sample(row.id, row.image, captions[0], captions, row.label), encoding, ""


def samples_of(rows: Iterable[Row], skipped: Counter, threads: int = THREADS) -> Iterator[Sample]:
    """Samples of the rows whose image can be decoded and which have a caption; all others are counted.

    The first of each reason are named in the log, and captions that were not UTF-8. One thread reads no row
    ahead.
    """
    rows, encodings = iter(rows), Counter()
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(rows, CHUNK if threads > 1 else 1)):
            results = pool.map(examined, chunk) if threads > 1 else map(examined, chunk)
            for row, (sample, reason, detail) in zip(chunk, results, strict=True):
                if sample:
                    encodings[reason] += 1
                    yield sample
                    continue
                skipped[reason] += 1
                if skipped[reason] <= NAMED:
                    log.warning("skipped %r: %s%s", row.id, reason, detail and f": {detail}")
    for encoding in ("UTF-16", "cp1252"):
        if count := encodings[encoding]:
            log.warning("%d captions are not UTF-8 and were read as %s", count, encoding)


def prefixed(source: str) -> str:
    return f"{source}{'&' if with_options(source)[1] else '?'}prefix=b_"


def check_distinct(ids: Iterable[str], sources: Sequence[str]) -> None:
    """Raise ValueError for ids that come twice."""
    twice = [key for key, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} ids are repeated in {', '.join(sources)}, the first is {twice[0]!r}; give "
            f"sources that are numbered alike one by one, with a prefix for each: {prefixed(sources[-1])!r}"
        )


def load_captioned(*sources: str) -> CaptionedImages:
    """Read every source: shards, folders of images, parquet files, saved datasets, `hf:owner/name`.

    data/README.md shows all layouts and options (`SOURCE?captions=FILE&prefix=b_`). Ids become safe file
    names. Raises FileNotFoundError for a missing source, ValueError if nothing usable is there or an id is
    repeated.
    """
    skipped: Counter = Counter()
    samples: list[Sample] = []
    layouts: list[str] = []
    for source in sources:
        opened = open_source(source, skipped)
        samples.extend(samples_of(opened.rows, skipped))
        layouts.append("; ".join((opened.layout, *opened.notes)))
    check_distinct((sample.id for sample in samples), sources)
    if not samples:
        raise ValueError(
            f"no captioned image in {', '.join(sources)}: {listed(skipped) or 'nothing that can be read'}; "
            "`python -m data inspect SOURCE` shows what is there"
        )
    images = CaptionedImages(samples, skipped, layouts)
    if skipped:
        log.warning("%s", images.report())
    return images
