"""The guard: images too near to a training image are made again, and refused where that does not help."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data.cli import warn_no_effect
from data.files import sha256_of
from infer.denoising.guidance import Trace
from infer.denoising.hooks import GuidanceRule
from infer.denoising.requests import Request
from infer.index.attempts import attempt_seed, with_rows
from infer.index.descriptor_index import DescriptorIndex
from infer.metrics.similarity import CORRELATION, Descriptor, nearest_threshold


def placeholder(image: Image.Image) -> Image.Image:
    """A grey image in place of one that is refused."""
    return Image.new("RGB", image.size, (128, 128, 128))


@dataclass
class Guarded:
    """What the guard let through.

    Attributes:
        images: a placeholder where all attempts were refused.
        attempts: how often each was made, (B,).
        refused: (B,) bool.
        similarity: of the last attempt to the nearest training image, (B,); NaN where undefined.
        nearest: id of that training image, or its number where the index has no ids.
    """

    images: list[Image.Image]
    attempts: Tensor
    refused: Tensor
    similarity: Tensor
    nearest: list[str]


class Guard:
    """Returns no image whose similarity to a training image of the index is above a threshold.

    Such an image is made again from another seed, which follows from its own, under the same rules or
    stronger ones; after the last attempt a placeholder replaces it. An image of one colour has no similarity
    and passes.

    Args:
        index: file of `python -m infer index`.
        threshold: similarity above which an image is too near, -1..1; None: 0.5 by SSCD, 0.85 by pixels.
        attempts: how often an image is made at most, the first time included.
        stronger: the rules of further attempts; none: those of the first.
        sscd: SSCD model of an index that was built with one; None: Meta's, where the index names it.
        device: of SSCD; None: a GPU where there is one.

    Raises FileNotFoundError or ValueError for an index or model that cannot be used.
    """

    def __init__(
        self, index: str | Path, threshold: float | None = None, attempts: int = 3,
        stronger: Sequence[GuidanceRule] = (), sscd: str | None = None, device: str | None = None,
    ):  # fmt: skip
        self.descriptors = DescriptorIndex.load(index)
        if threshold is None:
            threshold = nearest_threshold(by_pixels=self.descriptors.descriptor == CORRELATION)
        if not -1 <= threshold < 1:
            raise ValueError(f"the guard's threshold {threshold} is no similarity below 1: it lets all pass")
        if attempts < 1:
            raise ValueError(f"the guard's attempts, {attempts}, must be 1 or more")
        if stronger and attempts == 1:
            warn_no_effect("the guard's stronger", "there are no further attempts: set attempts to 2 or more")
        self.index, self.threshold, self.attempts = str(index), float(threshold), int(attempts)
        self.stronger, self.sscd, self.device = tuple(stronger), sscd, device
        if self.descriptors.check(sscd) is None and sscd is not None:
            warn_no_effect("the guard's sscd", "its index is of the pixels' correlation")

    def identity(self) -> dict[str, Any]:
        """The settings, and the index by its content, as the run folder records them."""
        settings = {name: getattr(self, name) for name in ("index", "threshold", "attempts")}
        rules = [rule.identity() for rule in self.stronger]
        return settings | {"index_sha256": sha256_of(Path(self.index))[:12], "stronger": rules}

    def label(self) -> str:
        """What a table adds to the mitigation's name."""
        return f"guarded (threshold={self.threshold:g}, attempts={self.attempts})"

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the descriptor's model is loaded again where it is needed."""
        return {name: value for name, value in vars(self).items() if name != "descriptor"}

    @cached_property
    def descriptor(self) -> Descriptor:
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return self.descriptors.load_descriptor(self.sscd, device)

    def nearest(self, images: list[Image.Image]) -> tuple[Tensor, Tensor]:
        """Similarity to the nearest training image, and its number, (B,) each."""
        matches = self.descriptors.nearest(self.descriptor(images))
        return matches.top, matches.top_index

    def watch(
        self, images: list[Image.Image], trace: Trace,
        again: Callable[[list[int], int], tuple[list[Image.Image], Trace]],
    ) -> tuple[Guarded, Trace]:  # fmt: skip
        """Check images; `again(rows, attempt)` makes those rows' images again. The trace of the last ones."""
        images, attempts = list(images), torch.ones(len(images), dtype=torch.long)
        similarity, number = self.nearest(images)
        for attempt in range(2, self.attempts + 1):
            rows = (similarity > self.threshold).nonzero()[:, 0].tolist()
            if not rows:
                break
            made, own = again(rows, attempt)
            trace = with_rows(trace, rows, own)
            similarity[rows], number[rows] = self.nearest(made)
            attempts[rows] = attempt
            for row, image in zip(rows, made, strict=True):
                images[row] = image
        refused = similarity > self.threshold
        shown = [placeholder(image) if no else image for image, no in zip(images, refused, strict=True)]
        ids = self.descriptors.ids or [str(n) for n in range(len(self.descriptors.embeddings))]
        return Guarded(shown, attempts, refused, similarity, [ids[n] for n in number.tolist()]), trace

    def watch_requests(
        self, requests: Sequence[Request], images: list[Image.Image], trace: Trace,
        make: Callable[[list[Request]], tuple[list[Image.Image], Trace]],
    ) -> tuple[Guarded, Trace]:  # fmt: skip
        """Check the images of requests; `make` makes others."""

        def again(rows: list[int], attempt: int) -> tuple[list[Image.Image], Trace]:
            others = [requests[row] for row in rows]
            return make([r._replace(seed=attempt_seed(r.seed, attempt)) for r in others])

        return self.watch(images, trace, again)
