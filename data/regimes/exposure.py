"""How often each image is shown: exact copies or weights for chosen images, mixed with ordinary data.

Pure index arithmetic. Images are given by their number, or by how often their source repeats each in a pass
(folders for Kohya's scripts): copies and weights multiply that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jsonargparse.typing import PositiveFloat, PositiveInt

from data.cli import warn_no_effect
from data.ranges import Share, ShareBelowOne

Images = int | Sequence[int] | np.ndarray  # how many, or how often each is repeated in a pass


def repeats_of(images: Images) -> np.ndarray:
    """How often the source repeats each image in a pass, (images,); 1 where only a number is given."""
    return np.ones(images, np.int64) if isinstance(images, int) else np.asarray(images, np.int64)


@dataclass(frozen=True)
class Exposure:
    """How often images are shown, per pass over the data.

    Args:
        copies: exact number of times each duplicated image is shown in a pass (Wen et al. 2024: 200).
        weight: or: draw the whole pass with replacement, duplicated images this many times as likely
            (Somepalli et al. 2023: 5). Give one of the two.
        duplicated_fraction: share of the images that is duplicated, chosen by seed (Somepalli et al.: 0.05).
        ordinary_share: share of a pass that comes from the ordinary images (Wen et al.: 0.75).
        duplicate: what is shown again: the image with its caption, or the image alone, each time with a
            random one of its captions (Somepalli et al.: dup_both and dup_image).
    """

    copies: PositiveInt = 1
    weight: PositiveFloat = 1.0
    duplicated_fraction: Share = 1.0
    ordinary_share: ShareBelowOne = 0.0
    duplicate: Literal["image_and_caption", "image"] = "image_and_caption"

    def __post_init__(self) -> None:
        if self.copies > 1 and self.weight != 1:
            raise ValueError(
                "give exposure.copies (exact) or exposure.weight (drawn with replacement), not both"
            )
        if self.duplicate == "image" and not self.duplicates:
            warn_no_effect("exposure.duplicate image", "nothing is duplicated: give copies or weight")

    @property
    def duplicates(self) -> bool:
        """Whether some images are shown more often than others, or than once in a pass."""
        return self.copies > 1 or self.weight != 1

    def pass_length(self, images: Images, seed: int) -> int:
        """Draws in a pass, of images and ordinary ones.

        ValueError where rounding leaves weight or ordinary_share without effect on so few images.
        """
        count = len(repeats_of(images))
        if self.weight != 1 and len(self.duplicated(images, seed)) == count:
            raise ValueError(
                f"exposure.weight has no effect: duplicated_fraction {self.duplicated_fraction:g} is all of "
                f"{count:,} images: lower it, or give more images"
            )
        if self.ordinary_share and not self.ordinary_count(images, seed):
            raise ValueError(
                f"exposure.ordinary_share {self.ordinary_share:g} is less than one of a pass over {count:,} "
                "images: raise it, or exposure.copies"
            )
        return int(self.repeats(images, seed).sum()) + self.ordinary_count(images, seed)

    def duplicated(self, images: Images, seed: int) -> np.ndarray:
        """Sorted indices of the images that have `copies` or `weight`; all of them where both are 1."""
        total = len(repeats_of(images))
        count = max(1, round(total * self.duplicated_fraction))
        return np.sort(np.random.default_rng([seed, 1]).permutation(total)[:count])

    def is_duplicated(self, images: Images, ordinary: Images, seed: int) -> np.ndarray:
        """Which images have copies, a weight or repeats, bool (images + ordinary,); ordinary ones: never."""
        duplicated = repeats_of(images) > 1
        if self.duplicates:
            duplicated[self.duplicated(images, seed)] = True
        return np.concatenate([duplicated, np.zeros(len(repeats_of(ordinary)), dtype=bool)])

    def repeats(self, images: Images, seed: int) -> np.ndarray:
        """How often each image is shown in a pass, (images,); when weights are used, as its source has it."""
        repeats = repeats_of(images).copy()
        repeats[self.duplicated(images, seed)] *= self.copies
        return repeats

    def likelihoods(self, images: Images, seed: int) -> np.ndarray:
        """Of each image to be the next one drawn, (images,): in proportion to weight times repeats."""
        weights = repeats_of(images).astype(float)
        weights[self.duplicated(images, seed)] *= self.weight
        return weights / weights.sum()

    def per_pass(self, images: Images, ordinary: Images, seed: int) -> np.ndarray:
        """How often each image is shown in a pass on average, (images + ordinary,); without weights exact."""
        repeats, shares = self.repeats(images, seed), repeats_of(ordinary)
        if self.weight != 1:
            repeats = self.likelihoods(images, seed) * repeats.sum()
        return np.concatenate([repeats, shares * self.ordinary_count(images, seed) / max(1, shares.sum())])

    def ordinary_count(self, images: Images, seed: int) -> int:
        """Ordinary images in a pass, so that they make up `ordinary_share` of it (rounded)."""
        return round(self.repeats(images, seed).sum() * self.ordinary_share / (1 - self.ordinary_share))

    def one_pass(self, images: Images, ordinary: Images, seed: int, number: int) -> np.ndarray:
        """Indices of pass `number`, shuffled: first come the numbers of images, then those of ordinary ones.

        Ordinary images take turns across passes: none is shown again before all were shown.
        """
        random = np.random.default_rng([seed, 2, number])
        repeats, total = self.repeats(images, seed), len(repeats_of(images))
        if self.weight != 1:
            shown = random.choice(total, repeats.sum(), p=self.likelihoods(images, seed))
        else:
            shown = np.repeat(np.arange(total), repeats)
        count = self.ordinary_count(images, seed)
        return random.permutation(np.concatenate([shown, total + self.rounds(ordinary, count, seed, number)]))

    @staticmethod
    def rounds(ordinary: Images, count: int, seed: int, number: int) -> np.ndarray:
        """Draws `number * count` to `(number + 1) * count` of the ordinary images; rounds are shuffled.

        A round has each image as often as its source repeats it.
        """
        if count == 0:
            return np.empty(0, dtype=np.int64)
        repeats = repeats_of(ordinary)
        once = np.repeat(np.arange(len(repeats)), repeats)
        first, last = number * count, (number + 1) * count
        laps = range(first // len(once), (last - 1) // len(once) + 1)
        order = np.concatenate([np.random.default_rng([seed, 3, lap]).permutation(once) for lap in laps])
        return order[first - laps[0] * len(once) : last - laps[0] * len(once)]

    def stream(self, images: Images, ordinary: Images, seed: int, start: int = 0) -> Iterator[int]:
        """Pass after pass without end, from draw `start` on: the same draws however a run is cut."""
        if self.ordinary_share and not len(repeats_of(ordinary)):
            raise ValueError("exposure.ordinary_share is set but there are no ordinary images")
        number, skip = divmod(start, self.pass_length(images, seed))
        while True:
            yield from self.one_pass(images, ordinary, seed, number)[skip:].tolist()
            number, skip = number + 1, 0
