"""Pictures that a data set holds more than once, under other ids and captions."""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data.captioned import THREADS, CaptionedImages, Sample, UnreadableImage
from data.files import digest
from data.remote import Unreachable
from data.repeats.near import first_near, thumbnail
from data.sources.rows import NAMED

log = logging.getLogger(__name__)
LEFT_OUT = "repeated pictures"
MANY = 5  # captions of one picture, from which it may be a placeholder


@dataclass
class Pictures:
    """Which samples show the same picture.

    Attributes:
        samples: in the order of the data.
        first: for each the index of the first that shows the same picture, (N,).
        same_pixels: whether that one has the very same pixels, bool (N,).
    """

    samples: Sequence[Sample]
    first: np.ndarray
    same_pixels: np.ndarray

    def groups(self, exact: bool) -> list[list[str]]:
        """Ids of each picture that comes again: the same to the pixel, or what is only nearly the same."""
        ids: dict[int, list[str]] = {}
        repeats = np.flatnonzero(self.first != np.arange(len(self.first)))
        for index in repeats[self.same_pixels[repeats] == exact]:
            first = int(self.first[index])
            ids.setdefault(first, [self.samples[first].id]).append(self.samples[index].id)
        return list(ids.values())

    def most_shown(self, shown: np.ndarray) -> str:
        """The picture that is shown most often, how often, and under how many captions.

        Args:
            shown: how often each sample is shown, (N,).
        """
        total = np.bincount(self.first, weights=shown)
        first = int(total.argmax())
        members = [self.samples[index] for index in np.flatnonzero(self.first == first)]
        captions = len({text for sample in members for text in sample.captions})
        text = f"{self.samples[first].id!r}, {total[first]:,.1f} times".replace(".0 times", " times")
        text += f" ({total[first] / total.sum():.2%} of all)"
        if len(members) > 1:
            text += f", as {len(members):,} images under {captions:,} caption{'s' * (captions > 1)}"
            if min(captions, len(members)) >= MANY:
                text += ": a placeholder such as 'image not available'?"
        return text


def pictures_of(samples: Sequence[Sample], shown: Callable[[Iterable], Iterable] = iter) -> Pictures:
    """Find the repeats. Each image is decoded to a thumbnail; those that are near others, wholly as well.

    An image that cannot be decoded repeats nothing. `shown(thumbnails)` passes on, as through a progress bar.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        small = list(shown(pool.map(small_of, samples)))
        readable = np.flatnonzero([each is not None for each in small])
        first = np.arange(len(samples))
        if len(readable):
            first[readable] = readable[first_near(np.stack([small[index] for index in readable]))]
        repeats = np.flatnonzero(first != np.arange(len(samples)))
        involved = np.union1d(repeats, first[repeats])
        whole = dict(zip(involved.tolist(), pool.map(lambda n: pixels_of(samples[n]), involved), strict=True))
    same = np.ones(len(samples), dtype=bool)
    same[repeats] = [whole[index] == whole[first[index]] is not None for index in repeats]
    return Pictures(samples, first, same)


def small_of(sample: Sample) -> np.ndarray | None:
    """The thumbnail, uint8 (SIDE, SIDE, 3)."""
    try:
        return thumbnail(sample.image)
    except Unreachable:
        raise
    except Exception:  # Pillow raises half a dozen kinds, for damage that only decoding shows
        return None


def pixels_of(sample: Sample) -> str | None:
    """A digest of size and decoded pixels."""
    try:
        image = sample.rgb()
    except UnreadableImage:
        return None
    return digest(image.size, image.tobytes())


def without_repeats(*parts: CaptionedImages) -> list[CaptionedImages]:
    """The parts without samples that repeat a picture of an earlier one; these are counted, and named."""
    samples = [sample for part in parts for sample in part.samples]
    pictures = pictures_of(samples)
    kept, start, named = [], 0, 0
    for part in parts:
        own = range(start, start + len(part))
        stay = [index for index in own if pictures.first[index] == index]
        for index in sorted({*own} - {*stay})[: NAMED - named]:
            how = "the same picture as" if pictures.same_pixels[index] else "nearly the same picture as"
            log.warning("left out %r: %s %r", samples[index].id, how, samples[pictures.first[index]].id)
            named += 1
        skipped = part.skipped.copy()
        if len(own) > len(stay):
            skipped[LEFT_OUT] += len(own) - len(stay)
        kept.append(CaptionedImages([samples[index] for index in stay], skipped, part.layouts))
        start += len(part)
    return kept
