"""The similarity of two images, by hand."""

import numpy as np
from PIL import Image


def local_correlation(one: Image.Image, other: Image.Image) -> float:
    """Pearson's correlation of 32x32 RGB, each pixel less the mean of the 11x11 around it."""

    def detail(image: Image.Image) -> np.ndarray:
        small = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX), float)
        around = [
            small[max(y - 5, 0) : y + 6, max(x - 5, 0) : x + 6].mean((0, 1))
            for y in range(32) for x in range(32)
        ]  # fmt: skip
        return small.ravel() - np.ravel(around)

    return float(np.corrcoef(detail(one), detail(other))[0, 1])
