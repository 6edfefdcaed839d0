"""The answer of an audit: how many captions return their training image, which, and how sure that is."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from data.batches import spread
from infer.compare.score_images import TOP_IDS
from infer.metrics.similarity import match
from infer.metrics.training_set import TrainingSet

Z = 1.96  # of a normal distribution: 95 % lie within
CONTROLS = 64  # images of other captions


class Share(NamedTuple):
    """k of n, and the 95 % interval of the share."""

    returned: int
    audited: int
    share: float
    low: float
    high: float


def share_of(returned: int, audited: int) -> Share:
    """Wilson's score interval, which holds for few captions and for none that return: 0 of 20 is 0 to 16 %.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), Wilson 1927. NaN for n = 0.
    """
    if not audited:
        return Share(0, 0, math.nan, math.nan, math.nan)
    p, square = returned / audited, Z**2 / audited
    half = Z * math.sqrt(p * (1 - p) / audited + square / (4 * audited))
    low, high = (max(0.0, min(1.0, (p + square / 2 + end) / (1 + square))) for end in (-half, half))
    return Share(returned, audited, p, low, high)


def share_returned(lines: pd.DataFrame, audited: int) -> Share:
    """The share of the audited captions whose line (`by_caption`) says that they return a training image."""
    return share_of(int((lines["returning"] > 0).sum()), audited)


class Answer(NamedTuple):
    """Which captions, or images, return a training image.

    Attributes:
        folder: of the images' run.
        rows: of all images, scored.
        lines: of each caption, the nearest first (`by_caption`).
        whole: the share of captions that return a training image.
        owners: training image of each line.
        controls: of each line that returns one, images of other captions as near, and of how many.
    """

    folder: Path
    rows: pd.DataFrame
    lines: pd.DataFrame
    whole: Share
    owners: list[int]
    controls: list[tuple[int, int]]

    @property
    def images(self) -> list[Path]:
        """The nearest image of each line."""
        return [self.folder / name for name in self.lines["image"]]

    @property
    def returned(self) -> pd.DataFrame:
        """The lines that return a training image, which are the first."""
        return self.lines.head(self.whole.returned)


def with_nearness(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows with `similarity` to the prompt's own training image, or without one to the nearest of all.

    `nearest_id` is the training image that is most similar of all.

    Args:
        rows: scored images.
        measure: prefix of the columns that decide.
    """
    own, top = (rows[f"{measure}_{kind}"].astype(float) for kind in ("own", "top"))
    return rows.assign(similarity=own.fillna(top), nearest_id=rows[TOP_IDS[measure]])


def by_caption(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """A line for each caption, those that return a training image and the nearest first.

    Columns: prompt_id, prompt; of its nearest image `sample`, `image` and `similarity`; `nearest_id`, the
    training image that is most similar to it of all; `samples` with a similarity, and `returning` of them.
    Captions without a similarity are left out.

    Args:
        rows: of `with_nearness`; `returns` says whether an image returns a training image.
        keys: columns that distinguish captions; with `sample` each image counts by itself.
    """
    keys = list(keys)
    rows = rows.dropna(subset="similarity")
    rows = rows.sort_values(["returns", "similarity"], ascending=False, kind="stable")
    groups = rows.groupby(keys)["returns"]
    best = rows.drop_duplicates(keys).set_index(keys, drop=False)
    best = best.assign(samples=groups.count(), returning=groups.sum().astype(int))
    shown = ["prompt_id", "prompt", "sample", "image", "similarity", "nearest_id", "samples", "returning"]
    return best[shown].reset_index(drop=True)


def training_index(training: TrainingSet, measure: str, rows: pd.DataFrame, images: Tensor) -> list[int]:
    """Which training image each row's image is measured against: the nearest of the prompt's own, or of all.

    Args:
        training: the training images.
        measure: prefix of the columns that decide.
        rows: with prompt_id, prompt and nearest_id.
        images: embeddings of the rows' images, (N, D).
    """
    _, embeddings = training.measures[measure]
    indices = []
    for own, nearest, image in zip(training.own(rows), rows["nearest_id"], images, strict=True):
        if len(own) > 1:
            own = [own[match(image[None], embeddings[own], [[]]).top_index.item()]]
        indices.append(own[0] if own else training.images.position[nearest])
    return indices


def others_as_near(
    images: Tensor, owners: Sequence[int], training: Tensor, threshold: float, lines: int
) -> list[tuple[int, int]]:
    """How many images of other captions come as near to the training image of each line, and of how many.

    Such a training image resembles many images, or stands in the training set more than once: that an image
    is near to it does not show that it was memorized.

    Args:
        images: embeddings of one image of each line, (N, D).
        owners: training image of each line.
        training: embeddings of all training images, (M, D).
        threshold: similarity that counts as near.
        lines: so many of the first are asked for.
    """
    counts = []
    for index in owners[:lines]:
        some = spread(np.flatnonzero(np.array(owners) != index).tolist(), CONTROLS)
        counts.append((int((images[some] @ training[index] > threshold).sum()), len(some)))
    return counts
