"""Captioned images from disk or the Hub, as samples {id, image, captions}.

Images stay encoded until they are asked for, so 100,000 samples fit in memory. What cannot be read is
skipped, counted and reported (`skipped`), never silently lost.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data.sources.image import decoded, problem
from data.sources.layouts import open_source, with_options
from data.sources.rows import IMAGE_SUFFIXES, Row, clean
from data.sources.shards import SHARD_SUFFIXES, shard_paths

__all__ = [
    "IMAGE_SUFFIXES",
    "SHARD_SUFFIXES",
    "CaptionedImages",
    "Sample",
    "checked",
    "load_captioned",
    "shard_paths",
]
log = logging.getLogger(__name__)
NAMED = 5  # of each reason this many are named in the log


@dataclass(frozen=True)
class Sample:
    """One captioned image: its id (such as its key in a shard), encoded bytes, its first caption and all.

    `label` is its class in words ("tench"), where the source has classes.
    """

    id: str
    image: bytes = field(repr=False)
    caption: str
    captions: tuple[str, ...] = ()
    label: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "captions", self.captions or (self.caption,))  # frozen

    def rgb(self, resolution: int | None = None) -> Image.Image:
        """Decoded to RGB of 8 bits; `resolution`: resized on the short side, centre-cropped."""
        image = decoded(self.image)
        if resolution and image.size != (resolution, resolution):
            image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
        return image

    def pixels(self, resolution: int) -> np.ndarray:
        """uint8 of shape (3, resolution, resolution)."""
        return np.asarray(self.rgb(resolution)).transpose(2, 0, 1).copy()


@dataclass
class CaptionedImages:
    """Samples in a fixed order, and why others were left out (reason -> how many)."""

    samples: list[Sample]
    skipped: Counter = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @cached_property
    def position(self) -> dict[str, int]:
        """Where each id stands."""
        return {sample.id: index for index, sample in enumerate(self.samples)}

    def report(self) -> str:
        lost = listed(self.skipped)
        return f"{len(self):,} captioned images" + (f" (skipped: {lost})" if lost else "")


def listed(skipped: Counter) -> str:
    """How many of each reason, as a part of a sentence; empty if there are none."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))


def texts(captions: Any) -> tuple[str, ...]:
    """All captions that are text, stripped, without empty ones, and such as UTF-8 can hold."""
    each = captions if isinstance(captions, list | tuple) else [captions]
    each = [text.decode("utf-8-sig", "replace") if isinstance(text, bytes) else text for text in each]
    stripped = (clean(text).strip() for text in each if isinstance(text, str))
    return tuple(filter(None, stripped))


def checked(row: Row, skipped: Counter) -> Sample | None:
    """The sample, if its image opens and it has a caption; else the reason is counted, the first named."""
    captions = texts(row.captions)
    if row.image is None:
        reason, detail = "without image", ""
    elif not captions:
        no_text = row.captions and not isinstance(row.captions, str | bytes)
        reason, detail = ("captions that are no text" if no_text else "without caption"), ""
    elif found := problem(row.image):
        reason, detail = found
    else:
        return Sample(row.id, row.image, captions[0], captions, row.label)
    skipped[reason] += 1
    if skipped[reason] <= NAMED:
        log.warning("skipped %r: %s%s", row.id, reason, detail and f": {detail}")
    return None


def prefixed(source: str) -> str:
    return f"{source}{'&' if with_options(source)[1] else '?'}prefix=b_"


def load_captioned(*sources: str) -> CaptionedImages:
    """Read every source, whichever of these it is:

    - webdataset shards as img2dataset writes them: a pattern (`{00000..00009}.tar`, `*.tar.gz`), or their
      folder. The caption is in `.txt`, or without one in `.json` under `caption`.
    - a folder of images, each with its `.txt` (or `.json`) beside it, also in subfolders.
    - a folder with `metadata.jsonl` or `metadata.csv`, or with one in each subfolder: `file_name`, and `text`
      or `caption`. Several rows of one image are its captions.
    - a folder of images, at any depth, and one JSON file {image path: [captions]}, in the folder or given as
      `FOLDER?captions=FILE`. Paths may be another disk's: they are matched by their ends.
    - class folders (`train/n01440764/*.JPEG`): "An image of {class}", Imagenette's WordNet ids by name.
    - a folder of `datasets.save_to_disk`, parquet files (a pattern, or their folder), or a dataset of the
      Hub: `hf:owner/name`, `hf:owner/name:split`. What is not guessed is said, in quotes for the shell:
      `'hf:owner/name?config=a&split=train&image=img&caption=text&id=key'`. Parquet files are of the split
      that their name or folder says; `train` is read where there are several. A column of classes
      (`datasets.ClassLabel`, or `label=` one of texts) gives labels, and "An image of {class}" where there is
      no column of captions.

    `SHARDS?captions=FILE`, and the same for tables: a JSON file {id: [captions]} whose captions stand in the
    place of an image's own (BLIP's 20, say); images that are not in it keep their own.

    A folder with nothing but `train` (and `val`, `test`) in it means its `train`. Images above
    `layouts_image.MAX_PIXELS` (89 million) are skipped. Ids become safe file names. Links to folders are
    followed, hidden files and folders are not read.

    Sources that are numbered alike are told apart by a prefix, which goes before each id of any source:
    `'FOLDER?prefix=ord_'`.

    Raises FileNotFoundError for a missing source, ValueError if nothing usable is found or an id comes twice.
    """
    skipped: Counter = Counter()
    samples: list[Sample] = []
    for source in sources:
        samples.extend(
            sample for row in open_source(source, skipped).rows if (sample := checked(row, skipped))
        )
    ids = Counter(sample.id for sample in samples)
    twice = [key for key, count in ids.items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} ids stand more than once in {', '.join(sources)}, the first is {twice[0]!r}; give "
            f"sources that are numbered alike one by one, with a prefix for each: {prefixed(sources[-1])!r}"
        )
    if not samples:
        raise ValueError(
            f"no captioned image in {', '.join(sources)}: {listed(skipped) or 'nothing that can be read'}; "
            "`python -m data inspect SOURCE` shows what is there"
        )
    images = CaptionedImages(samples, skipped)
    if skipped:
        log.warning("%s", images.report())
    return images
