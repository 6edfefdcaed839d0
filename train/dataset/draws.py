"""Which images a process is shown, and what of each: the exposure stream, dealt out to the ranks."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from data.captioned import Sample
from data.captions import Captions
from train.dataset.cache import Shards

Draw = tuple[int, int]  # its number in the run, and the image's index


class PlannedDraws(DistributedSampler):
    """This rank's draws of the exposure stream, for the batches after `done` of the run's `batches`.

    A global batch is `batch_size * num_replicas` consecutive draws, dealt out to the ranks in turn. Being a
    DistributedSampler, Lightning leaves it as it is. The length is that of the whole run, because Lightning
    counts on from the batch where a run was cut.

    Args:
        stream: of image indices, from draw `first` on; it is used up, once.
        first: number of its first draw in the run.
        batches: of this rank in the whole run.
        done: of these, before this start.
        batch_size: images of a batch and rank.
        num_replicas: ranks.
        rank: this one.
    """

    def __init__(
        self,
        stream: Iterator[int],
        first: int,
        batches: int,
        done: int,
        batch_size: int,
        num_replicas: int,
        rank: int,
    ):  # no super().__init__: that one samples a data set, this one a stream
        self.stream, self.first, self.batches, self.done = stream, first, batches, done
        self.batch_size, self.num_replicas, self.rank = batch_size, num_replicas, rank

    def __iter__(self) -> Iterator[Draw]:
        draws = (self.batches - self.done) * self.batch_size * self.num_replicas
        for number, index in zip(range(draws), self.stream, strict=False):
            if number % self.num_replicas == self.rank:
                yield self.first + number, index

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """The stream goes on by itself."""


class Drawn(Dataset):
    """Batches of draws: what is cached from the cache, the rest as pixels and words.

    {index: numpy (B,), which no one moves to a device; mean, std: (B, sides, C, h, w), or pixels: uint8
    (B, sides, 3, H, W); embedding: (B, tokens, width), or caption: list of B}. Side 1 is mirrored.
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

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, draws: Sequence[Draw]) -> dict[str, Any]:
        indices = [index for _, index in draws]
        batch: dict[str, Any] = {"index": np.array(indices)}
        if self.latents is None:
            batch["pixels"] = stacked([self.samples[index] for index in indices], self.resolution, self.flip)
        else:
            batch |= {name: self.latents.rows(name, indices) for name in ("mean", "std")}
        if self.embeddings is None:
            batch["caption"] = [self.captions.text(*draw) for draw in draws]
        else:
            batch["embedding"] = self.embeddings.rows(
                "embedding", [self.captions.text_index(*draw) for draw in draws]
            )
        return batch


def stacked(samples: Sequence[Sample], resolution: int, flip: bool) -> torch.Tensor:
    """uint8 (B, sides, 3, H, W)."""
    pixels = torch.stack([torch.from_numpy(sample.pixels(resolution)) for sample in samples])
    return torch.stack([pixels, pixels.flip(-1)] if flip else [pixels], 1)
