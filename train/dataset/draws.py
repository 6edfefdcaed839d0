"""Which images a process is shown, and what of each: the exposure stream, dealt out to the ranks."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from data.captioned import NAMED, Sample
from data.regimes.captions import Captions
from data.remote import Unreachable
from train.dataset.cache import Shards

Draw = tuple[int, int]  # its number in the run, and the image's index
log = logging.getLogger(__name__)
SKIPPED: set[str] = set()  # ids that this process has logged


class PlannedDraws(DistributedSampler):
    """This rank's share of `draws`, for the batches after `done` of the run's `batches`.

    A global batch is `batch_size * num_replicas` consecutive draws, dealt out to the ranks in turn. Lightning
    leaves a DistributedSampler unchanged. The length is that of the whole run, because Lightning counts from
    the batch where a run was interrupted.
    """

    def __init__(
        self, draws: Iterator[Draw], batches: int, done: int, batch_size: int, num_replicas: int, rank: int
    ):  # no super().__init__(), which samples a data set
        self.draws, self.batches, self.done = draws, batches, done
        self.batch_size, self.num_replicas, self.rank = batch_size, num_replicas, rank

    def __iter__(self) -> Iterator[Draw]:
        draws = (self.batches - self.done) * self.batch_size * self.num_replicas
        return islice(self.draws, self.rank, draws, self.num_replicas)

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Nothing: a new epoch has a new sampler."""


class Drawn(Dataset):
    """Batches of draws: from the cache, or as pixels and captions.

    {index: numpy (B,), which stays on the CPU; mean, std: (B, variants, C, h, w), or pixels: uint8
    (B, variants, 3, H, W); embedding: (B, tokens, width), or caption: list of B; readable: bool (B,), absent
    where the cache holds every image}. Variant 1 is mirrored. Numbers from the cache keep its precision: the
    training step converts them, on its device, and of the latents only the variant that it draws.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        captions: Captions,
        latents: Shards | None,
        embeddings: Shards | None,
        resolution: int,
        flip: bool,
    ):
        self.samples, self.captions = samples, captions
        self.latents, self.embeddings = latents, embeddings
        self.resolution, self.flip = resolution, flip
        self.readable = None if latents is None else latents.all_of("readable")
        self.all_readable = latents is not None and bool(self.readable.all())

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, draws: Sequence[Draw]) -> dict[str, Any]:
        indices = [index for _, index in draws]
        batch: dict[str, Any] = {"index": np.array(indices)}
        if self.latents is None:
            samples = [self.samples[index] for index in indices]
            batch["pixels"], batch["readable"] = stacked(samples, self.resolution, self.flip)
        else:
            batch |= {name: self.latents.rows(name, indices) for name in ("mean", "std")}
            if not self.all_readable:
                batch["readable"] = self.readable[indices]
        if self.embeddings is None:
            batch["caption"] = [self.captions.text(*draw) for draw in draws]
        else:
            batch["embedding"] = self.embeddings.rows(
                "embedding", [self.captions.text_index(*draw) for draw in draws]
            )
        return batch


def stacked(samples: Sequence[Sample], resolution: int, flip: bool) -> tuple[Tensor, Tensor]:
    """Pixels, uint8 (B, variants, 3, H, W), and whether each is readable, bool (B,), or else black."""
    pixels, readable = torch.zeros(len(samples), 3, resolution, resolution, dtype=torch.uint8), []
    for row, sample in enumerate(samples):
        try:
            pixels[row] = torch.from_numpy(sample.pixels(resolution))
            readable.append(True)
        except Unreachable:  # it can be read another time: no reason to leave it out
            raise
        except Exception as error:  # Pillow raises half a dozen kinds, for damage that only decoding shows
            readable.append(False)
            unreadable(sample.id, error)
    return torch.stack([pixels, pixels.flip(-1)] if flip else [pixels], 1), torch.tensor(readable)


def unreadable(name: str, error: Exception) -> None:
    """Log that an image is skipped; each image once, and the first few only."""
    if name not in SKIPPED and len(SKIPPED) < NAMED:
        log.warning("skipped %r, which cannot be decoded: %s", name, error)
    SKIPPED.add(name)
