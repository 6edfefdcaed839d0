"""What training data holds, gathered in one pass: sizes, captions, duplicates, and what is wrong with it."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np

from data.captioned import Sample, samples_of
from data.images.decoding import opened as image_header
from data.repeats.pictures import pictures_of
from data.sources.layouts import open_source
from data.sources.rows import Row


@dataclass
class Inspection:
    """Numbers of all sources together; of the images themselves only a few stay in memory.

    Args:
        keep: how many samples to keep for a contact sheet, drawn evenly from all.
    """

    keep: int = 0
    layouts: list[tuple[str, str, int]] = field(default_factory=list)  # source, layout, usable images
    shards: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    ids: Counter = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)  # (format, mode)
    captions: list[int] = field(default_factory=list)  # how many an image has
    characters: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    labels: Counter = field(default_factory=Counter)  # images of each class
    everything: list[Sample] = field(default_factory=list)  # of images on disk only where they are
    by_caption: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    kept: list[tuple[int, Sample]] = field(default_factory=list)
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, source: str, shown: Callable[[Iterable[Row], str, int | None], Iterable[Row]]) -> None:
        """Read a source; `shown(rows, source, total)` passes the rows on, such as through a progress bar."""
        opened, before = open_source(source, self.skipped), len(self)
        for sample in samples_of(shown(opened.rows, source, opened.total), self.skipped):
            self.add(sample)
        self.shards += opened.stats or Counter()
        self.layouts.append((source, "; ".join((opened.layout, *opened.notes)), len(self) - before))

    def add(self, sample: Sample) -> None:
        image = image_header(sample.image)
        self.everything.append(sample)
        self.ids[sample.id] += 1
        self.sizes.append(image.size)
        self.kinds[image.format or "?", image.mode] += 1
        self.captions.append(len(sample.captions))
        self.characters += map(len, sample.captions)
        self.words += (len(text.split()) for text in sample.captions)
        if sample.label is not None:
            self.labels[sample.label] += 1
        self.by_caption[sample.caption].append(sample.id)
        number = len(self) - 1  # reservoir sampling: each sample is kept with the same probability
        if number < self.keep:
            self.kept.append((number, sample))
        elif (slot := self.draw.randrange(len(self))) < self.keep:
            self.kept[slot] = (number, sample)

    def samples(self) -> list[Sample]:
        """The samples kept, in the order of the data."""
        return [sample for _, sample in sorted(self.kept, key=lambda pair: pair[0])]

    def rows(self, shown: Callable[[Iterable], Iterable] = iter) -> list[tuple[str, str]]:
        """Names and values of all numbers of the usable images.

        These are decoded once more, to find repeated pictures: `shown` passes them on, as through a bar.
        """
        if not self.sizes:
            return [("usable images", "0")]
        widths, heights = zip(*self.sizes, strict=True)
        pictures = pictures_of(self.everything, shown)
        repeats = np.array([sample.repeats for sample in self.everything])
        kinds = ", ".join(f"{form} {mode}: {count:,}" for (form, mode), count in self.kinds.most_common())
        rows = [
            ("usable images", f"{len(self):,}"),
            ("formats", kinds),
            ("width", spread(widths, median, "median")),
            ("height", spread(heights, median, "median")),
            ("short side", spread([min(size) for size in self.sizes], median, "median")),
            ("captions per image", spread(self.captions, fmean, "mean")),
            ("words per caption", spread(self.words, fmean, "mean")),
            ("characters per caption", spread(self.characters, fmean, "mean")),
            ("same picture again", duplicates(pictures.groups(exact=True))),
            ("nearly the same picture again", duplicates(pictures.groups(exact=False))),
            ("most shown picture in a pass", pictures.most_shown(repeats)),
            ("same (first) caption again", duplicates(self.by_caption.values())),
        ]
        if (repeats > 1).any():
            rows.append(("shown in a pass", f"{repeats.sum():,}, by the repeats of the source"))
        if self.labels:
            rows.append(("classes", f"{len(self.labels):,}"))
            rows.append(("images per class", spread(self.labels.values(), median, "median")))
            if lost := len(self) - self.labels.total():
                rows.append(("without a class", f"{lost:,}"))
        if again := {key: [key] * count for key, count in self.ids.items() if count > 1}:
            rows.append(("same id again: refused in training", duplicates(again.values())))
        return rows


def spread(values: Iterable[int], middle: Callable, name: str) -> str:
    values = list(values)
    return f"{min(values):,} / {middle(values):,.4g} / {max(values):,} (min / {name} / max)"


def duplicates(groups: Iterable[list[str]]) -> str:
    """How many entries repeat an earlier one, and the ids of the largest group."""
    repeated = [ids for ids in groups if len(ids) > 1]
    if not repeated:
        return "none"
    largest = max(repeated, key=len)
    some = ", ".join(largest[:4]) + (", ..." if len(largest) > 4 else "")
    extra = sum(map(len, repeated)) - len(repeated)
    return f"{extra:,} in {len(repeated):,} groups; the largest, of {len(largest):,}: {some}"
