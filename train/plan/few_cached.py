"""Planned data of which a few rows are encoded, to see how long all of them would take."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from infer.plan.clock import now
from train.dataset.cache import BATCH, SHARD, Shards, missing_shards
from train.dataset.planned import LatentData

SECONDS = 20  # of encoding, of images and of captions


class Encoding(NamedTuple):
    """Rows that the cache lacks, and the seconds that one device would take for them."""

    rows: int
    seconds: float


class Repeated:
    """In the place of `Shards`: so many rows, which are these ones again and again."""

    def __init__(self, tensors: dict[str, Tensor], rows: int):
        self.tensors, self.count = tensors, rows

    def rows(self, name: str, numbers: Sequence[int]) -> Tensor:
        """float32 of shape (len(numbers), ...)."""
        return self.all_of(name, torch.as_tensor(numbers)).float()

    def all_of(self, name: str, numbers: Tensor | None = None) -> Tensor:
        numbers = torch.arange(self.count) if numbers is None else numbers
        values = self.tensors[name]
        return values[numbers % len(values)]


class FewCached(LatentData):
    """Captioned images, of which the cache is read where it is whole, and else not written.

    Attributes:
        encoding: what the cache lacks, by `images` and `captions`.
        spent: seconds that were spent on encoding a few of them.
    """

    def setup(self, stage: str) -> None:
        self.encoding: dict[str, Encoding] = {}
        self.spent = 0.0
        super().setup(stage)

    def cached(self, name: str, rows: int, encode: Callable, what: str) -> Shards | Repeated:
        folder, device = Path(self.cache, name), self.trainer.strategy.root_device
        missing = missing_shards(folder, rows)
        if not missing:
            return Shards(folder, rows)
        begun = now(device)
        encode(range(1))  # the device's first is slower
        started = now(device)
        few = max(1, min(rows, BATCH, int(SECONDS / max(started - begun, 1e-6))))
        tensors = encode(range(few))
        ended = now(device)
        left = sum(min(SHARD, rows - number * SHARD) for number in missing)
        self.encoding[what] = Encoding(left, (ended - started) / few * left)
        self.spent += ended - begun
        return Repeated(tensors, rows)
