"""Similarity of images, the cosine of their descriptors, and the search for the nearest training image."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.batches import in_batches

COPY_THRESHOLD = 0.5  # an image whose similarity to a training image is above this is a copy of it
PIXEL_THRESHOLD = 0.85  # by pixels, of the nearest of many images: different ones are often alike at 32x32
CONSTANT = 1.0  # of 255 grey levels: an image whose detail varies less has nothing to compare
NEIGHBOURHOOD = 11  # px of 32
CORRELATION = "local correlation of 32x32 RGB"
BLIND_SPOTS = (
    "The local correlation compares detail pixel by pixel at 32x32: each colour less its mean over the 11x11 "
    "pixels around, so that a background shared by two images counts little. It ignores brightness and "
    "contrast (a faded copy counts as a copy, and so does any faint image with the same layout) and misses "
    "copies that are shifted, mirrored or cropped; SSCD, a trained copy detector, finds these."
)


@dataclass(frozen=True)
class Descriptor:
    """Images -> embeddings (B, D) on the CPU. Descriptors with one identity give the same embeddings."""

    identity: str
    embed: Callable[[list[Image.Image]], Tensor]

    def __call__(self, images: list[Image.Image]) -> Tensor:
        return self.embed(images)


def nearest_threshold(by_pixels: bool) -> float:
    """The similarity to the nearest of many training images above which an image counts as a copy."""
    return PIXEL_THRESHOLD if by_pixels else COPY_THRESHOLD


def thumbnails(images: list[Image.Image]) -> Tensor:
    """Box averages of 32x32 RGB in grey levels, (B, 3, 32, 32)."""
    small = [np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX)) for image in images]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float()


def detail(thumbnails: Tensor) -> Tensor:
    """Each pixel less the mean of its neighbourhood inside the image, (B, 3, H, W) like thumbnails."""
    half = NEIGHBOURHOOD // 2
    return thumbnails - F.avg_pool2d(thumbnails, NEIGHBOURHOOD, 1, half, count_include_pad=False)


def are_constant(thumbnails: Tensor) -> Tensor:
    """Which images have one colour, or nearly so, (B,): their similarity to anything is undefined."""
    return detail(thumbnails).flatten(2).std(2, correction=0).amax(1) < CONSTANT


def correlate(images: list[Image.Image]) -> Tensor:
    """Detail of 32x32 RGB without its mean, at unit length, (B, 3072); NaN for constant images."""
    return correlation_embedding(thumbnails(images))


def correlation_embedding(thumbnails: Tensor) -> Tensor:
    """Detail of thumbnails (B, 3, 32, 32) without its mean, at unit length, (B, 3072); differentiable."""
    flat = detail(thumbnails).flatten(1)
    unit = F.normalize(flat - flat.mean(1, keepdim=True))
    return unit.masked_fill(are_constant(thumbnails)[:, None], torch.nan)


pixel_descriptor = Descriptor(CORRELATION, correlate)


def similarity(descriptor: Descriptor, images: list[Image.Image], references: list[Image.Image]) -> Tensor:
    """Cosine of each image with its reference, (B,); NaN where one of both is constant."""
    return (descriptor(images) * descriptor(references)).sum(1)


def embed_all(
    images: Iterable[Image.Image], descriptor: Callable[[list[Image.Image]], Tensor], batch_size: int = 64
) -> Tensor:
    """Embed batch by batch, (N, D), or (0, 0) without images."""
    parts = [descriptor(batch) for batch in in_batches(images, batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, 0)


@dataclass
class Matches:
    """Similarities per image, NaN where undefined.

    Attributes:
        own: to the most similar of the image's own training images, (N,).
        top: to the most similar of all training images, (N,).
        top_index: which one that is, the first of equals, (N,).
    """

    own: Tensor
    top: Tensor
    top_index: Tensor


def match(images: Tensor, training: Tensor, own: Sequence[Sequence[int]], columns: int = 16384) -> Matches:
    """Search unit embeddings (N, D) in (M, D) by brute force; rows of NaN match nothing.

    Args:
        images: embeddings to search for, of one batch.
        training: embeddings to search in.
        own: for each image the indices of its own training images.
        columns: training images at a time; N x `columns` cosines are in memory at once.
    """

    def cosines(some: Tensor, others: Tensor) -> Tensor:
        return (some @ others.T).nan_to_num(nan=-torch.inf)

    top = images.new_full((len(images),), -torch.inf)
    index = torch.zeros_like(top, dtype=torch.long)
    for first in range(0, len(training), columns):
        best = cosines(images, training[first : first + columns]).max(1)
        better = best.values > top  # not >=: the first of equals stays
        top = torch.where(better, best.values, top)
        index = torch.where(better, best.indices + first, index)
    to_own = torch.full_like(top, -torch.inf)
    sharing: dict[int, list[int]] = {}  # rows by their list, which may be of all images, as without captions
    for row, indices in enumerate(own):
        sharing.setdefault(id(indices), []).append(row)
    for rows in sharing.values():
        for part in in_batches(own[rows[0]], columns):
            to_own[rows] = to_own[rows].maximum(cosines(images[rows], training[part]).amax(1))
    defined = (values.where(values.isfinite(), torch.nan) for values in (to_own, top))
    return Matches(*defined, index)
