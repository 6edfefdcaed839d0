"""Captioned images from disk or the Hub, as samples {id, image, captions}.

Of images that lie on disk only the locations are held. What cannot be read is skipped, counted and named in
the log (`skipped`), never silently lost.
"""

import logging
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data.disk import is_lost
from data.files import one_line
from data.images.decoding import decoded, problem
from data.images.stored import Stored, WholeFile, read
from data.remote import Unreachable, lost
from data.sources.layouts import open_source, with_options
from data.sources.rows import NAMED, Row, clean

log = logging.getLogger(__name__)
CHUNK = 512  # rows read ahead where all are loaded
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

    `label` is its class in words ("tench"), where the source has classes; `repeats` how often the source
    wants it shown in a pass (Kohya's folders).
    """

    id: str
    stored: Stored = field(repr=False)
    caption: str
    captions: tuple[str, ...] = ()
    label: str | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "captions", self.captions or (self.caption,))  # frozen

    @property
    def image(self) -> bytes:
        """The encoded image, read from disk each time; Unreachable where its file is there no more."""
        try:
            return read(self.stored)
        except OSError as error:
            if is_lost(error):
                raise Unreachable(lost(error)) from error
            raise

    def rgb(self, resolution: int | None = None) -> Image.Image:
        """Decoded to RGB of 8 bits; `resolution`: resized on the short side, centre-cropped.

        UnreadableImage where that is impossible.
        """
        try:
            image = decoded(self.image)
        except Unreachable:
            raise
        except Exception as error:  # of PIL's half a dozen kinds, or of the disk
            raise UnreadableImage(self.id, one_line(error)) from error
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


def decoded_text(text: bytes) -> str | None:
    """UTF-8, or UTF-16 with a byte order mark; None for anything else, such as UTF-16 without the mark."""
    wide = text.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    try:
        decoded = text.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in decoded else decoded


def texts(captions: Any) -> tuple[str, ...]:
    """All captions that are text, stripped, not empty, and such as UTF-8 can hold."""
    each = captions if isinstance(captions, list | tuple) else [captions]
    return tuple(filter(None, (clean(text).strip() for text in each if isinstance(text, str))))


def examined(row: Row, uncaptioned: bool = False) -> tuple[Sample | None, str, str]:
    """The sample; or None, why it cannot be used, and the details.

    uncaptioned: an image without a caption is a sample whose caption is empty.
    """
    if row.image is None:
        return None, row.missing, row.detail
    raw = decoded_text(row.captions) if isinstance(row.captions, bytes) else row.captions
    if raw is None and row.captions is not None:
        return None, "captions that are not UTF-8", ""
    captions = texts(raw)
    if any("\0" in caption for caption in captions):  # which no prompt can have
        return None, "captions that are not UTF-8", "it holds null characters"
    if not captions:
        no_text = raw and not isinstance(raw, str)
        if no_text or not uncaptioned:
            return None, "captions that are no text" if no_text else "without caption", row.detail
        captions = ("",)
    try:
        image = read(row.image)
    except Unreachable:
        raise
    except (OSError, ValueError) as error:  # of a disk, or pyarrow's
        if is_lost(error) and not isinstance(row.image, WholeFile):  # which may be a dead link
            raise Unreachable(lost(error)) from error
        return None, "unreadable images", one_line(error)
    if image is None:
        return None, row.missing, row.detail
    if reason := problem(image):
        return None, *reason
    return Sample(row.id, row.image, captions[0], captions, row.label, row.repeats), "", ""


def samples_of(
    rows: Iterable[Row],
    skipped: Counter,
    threads: int = THREADS,
    chunk: int = CHUNK,
    uncaptioned: bool = False,
) -> Iterator[Sample]:
    """Samples of the rows whose image can be decoded and which have a caption; all others are counted.

    The first of each reason are named in the log. `chunk`: rows read ahead, to be examined at once.
    `uncaptioned`: those without a caption are samples, too.
    """
    examine = partial(examined, uncaptioned=uncaptioned)
    rows = iter(rows)
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(rows, chunk)):
            results = pool.map(examine, some) if threads > 1 else map(examine, some)
            for row, (sample, reason, detail) in zip(some, results, strict=True):
                if sample:
                    yield sample
                    continue
                skipped[reason] += 1
                if skipped[reason] <= NAMED:
                    log.warning("skipped %r: %s%s", row.id, reason, detail and f": {detail}")


def check_distinct(ids: Iterable[str], sources: Sequence[str]) -> None:
    """Raise ValueError for ids that come twice."""
    twice = [key for key, count in Counter(ids).items() if count > 1]
    if twice:
        joint = "&" if with_options(sources[-1])[1] else "?"
        raise ValueError(
            f"{len(twice)} ids are repeated in {', '.join(sources)}, the first is {twice[0]!r}; give "
            "sources with the same numbering one by one, with a prefix for each: "
            f"'{sources[-1]}{joint}prefix=b_'"
        )


def load_captioned(*sources: str, uncaptioned: bool = False) -> CaptionedImages:
    """Read every source: shards, folders of images, parquet files, saved datasets, `hf:owner/name`.

    data/README.md shows all layouts and options (`SOURCE?captions=FILE&prefix=b_`). Ids become safe file
    names. `uncaptioned`: images without a caption are read, too, with an empty one. Raises FileNotFoundError
    for a missing source, ValueError if nothing usable is there or an id is repeated.
    """
    skipped: Counter = Counter()
    samples: list[Sample] = []
    layouts: list[str] = []
    for source in sources:
        opened = open_source(source, skipped)
        samples.extend(samples_of(opened.rows, skipped, uncaptioned=uncaptioned))
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
