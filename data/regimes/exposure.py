"""How often each image is shown: exact copies or weights for chosen images, mixed with ordinary data.

Pure index arithmetic.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jsonargparse.typing import PositiveFloat, PositiveInt

from data.cli import warn_no_effect
from data.ranges import Share, ShareBelowOne


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

    def pass_length(self, images: int, seed: int) -> int:
        """Draws in a pass, of images and ordinary ones.

        ValueError where rounding leaves weight or ordinary_share without effect on so few images.
        """
        if self.weight != 1 and len(self.duplicated(images, seed)) == images:
            raise ValueError(
                f"exposure.weight has no effect: duplicated_fraction {self.duplicated_fraction:g} is all of "
                f"{images:,} images: lower it, or give more images"
            )
        if self.ordinary_share and not self.ordinary_count(images, seed):
            raise ValueError(
                f"exposure.ordinary_share {self.ordinary_share:g} is less than one of a pass over {images:,} "
                "images: raise it, or exposure.copies"
            )
        shown = images if self.weight != 1 else int(self.repeats(images, seed).sum())
        return shown + self.ordinary_count(images, seed)

    def duplicated(self, images: int, seed: int) -> np.ndarray:
        """Sorted indices of the images that have `copies` or `weight`; all of them where both are 1."""
        count = max(1, round(images * self.duplicated_fraction))
        return np.sort(np.random.default_rng([seed, 1]).permutation(images)[:count])

    def is_duplicated(self, images: int, ordinary: int, seed: int) -> np.ndarray:
        """Which images are duplicated, bool of shape (images + ordinary,); ordinary ones never are."""
        duplicated = np.zeros(images + ordinary, dtype=bool)
        if self.duplicates:
            duplicated[self.duplicated(images, seed)] = True
        return duplicated

    def repeats(self, images: int, seed: int) -> np.ndarray:
        """Copies of each image in a pass, (images,); all 1 when weights are used."""
        repeats = np.ones(images, dtype=np.int64)
        repeats[self.duplicated(images, seed)] = self.copies
        return repeats

    def ordinary_count(self, images: int, seed: int) -> int:
        """Ordinary images in a pass, so that they make up `ordinary_share` of it (rounded)."""
        return round(self.repeats(images, seed).sum() * self.ordinary_share / (1 - self.ordinary_share))

    def one_pass(self, images: int, ordinary: int, seed: int, number: int) -> np.ndarray:
        """Indices of pass `number`, shuffled: those below `images` are images, the others ordinary ones.

        Ordinary images take turns across passes: none is shown again before all were shown.
        """
        random = np.random.default_rng([seed, 2, number])
        if self.weight != 1:
            weights = np.ones(images)
            weights[self.duplicated(images, seed)] = self.weight
            shown = random.choice(images, images, p=weights / weights.sum())
        else:
            shown = np.repeat(np.arange(images), self.repeats(images, seed))
        count = self.ordinary_count(images, seed)
        return random.permutation(
            np.concatenate([shown, images + self.rounds(ordinary, count, seed, number)])
        )

    @staticmethod
    def rounds(ordinary: int, count: int, seed: int, number: int) -> np.ndarray:
        """Draws `number * count` to `(number + 1) * count` of the ordinary images; rounds are shuffled."""
        if count == 0:
            return np.empty(0, dtype=np.int64)
        first, last = number * count, (number + 1) * count
        laps = range(first // ordinary, (last - 1) // ordinary + 1)
        order = np.concatenate([np.random.default_rng([seed, 3, lap]).permutation(ordinary) for lap in laps])
        return order[first - laps[0] * ordinary : last - laps[0] * ordinary]

    def stream(self, images: int, ordinary: int, seed: int, start: int = 0) -> Iterator[int]:
        """Pass after pass without end, from draw `start` on: the same draws however a run is cut."""
        if self.ordinary_share and not ordinary:
            raise ValueError("exposure.ordinary_share is set but there are no ordinary images")
        number, skip = divmod(start, self.pass_length(images, seed))
        while True:
            yield from self.one_pass(images, ordinary, seed, number)[skip:].tolist()
            number, skip = number + 1, 0
