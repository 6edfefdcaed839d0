"""Pictures that are nearly the same: thumbnails, their distance, and the search for all that are near.

A thumbnail has the box averages of 16x16 RGB. Two pictures are near if their thumbnails differ by an RMS of
3 grey levels of 255 at most. So a picture is found again when it was scaled, or encoded anew with loss; not
when it was cropped, mirrored, or changed in its colours, nor a small one (64 px) after much loss. Drawings
that differ in few pixels, such as an emoji of a man and of a woman, may count as one.
"""

from collections import defaultdict

import numpy as np
from PIL import Image

from data.images.decoding import decoded

SIDE = 16
NEAR = 3.0  # RMS in grey levels


def thumbnail(encoded: bytes) -> np.ndarray:
    """uint8 (SIDE, SIDE, 3); what the decoder raises for an image that is damaged."""
    small = decoded(encoded, 4 * SIDE).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def first_near(thumbnails: np.ndarray, limit: float = NEAR) -> np.ndarray:
    """For each picture the index of the first one that shows the same, its own if none before it does, (N,).

    Each is compared with the firsts alone: a picture that is near to a repeat, but not to its first, is a
    first itself, so that small differences do not add up.

    Args:
        thumbnails: uint8 (N, SIDE, SIDE, 3).
        limit: largest RMS.
    """
    flat = thumbnails.reshape(len(thumbnails), -1)
    _, firsts, inverse = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(firsts)  # equal thumbnails are one, in the order of the data
    neighbours = pairs(thumbnails[firsts[order]], limit)
    first = np.arange(len(order))
    for number in first:
        earlier = [other for other in neighbours[number] if other < number and first[other] == other]
        first[number] = min(earlier, default=number)
    place = np.argsort(order)
    return firsts[order][first[place[inverse.reshape(-1)]]]


def pairs(thumbnails: np.ndarray, limit: float) -> dict[int, list[int]]:
    """The numbers of all that are near to each.

    Means over quarters, and their projection on one direction, differ by no more than the thumbnails do:
    sorted by that projection, only a window has to be searched.
    """
    near: dict[int, list[int]] = defaultdict(list)
    if len(thumbnails) < 2:
        return near
    flat = thumbnails.reshape(len(thumbnails), -1)
    half = SIDE // 2
    quarters = thumbnails.reshape(-1, 2, half, 2, half, 3).mean((2, 4), dtype=np.float32).reshape(-1, 12)
    _, _, directions = np.linalg.svd(np.cov(quarters, rowvar=False))
    along = quarters @ directions[0]
    order = np.argsort(along, kind="stable")
    quarters, along = quarters[order], along[order]
    ends = np.searchsorted(along, along + limit * np.sqrt(12), "right")
    for number, end in enumerate(ends):
        window = np.arange(number + 1, end)
        window = window[rms(quarters[window], quarters[number]) <= limit]
        one, others = int(order[number]), order[window]
        for two in others[rms(flat[others], flat[one]) <= limit].tolist():
            near[one].append(two)
            near[two].append(one)
    return near


def rms(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Root mean square of the differences of rows (N, D) to a row (D,)."""
    return np.sqrt((np.subtract(rows, row, dtype=np.float32) ** 2).mean(1))
