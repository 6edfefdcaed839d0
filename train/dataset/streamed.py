"""Data module of a stream of shards: read as training goes, encoded each step, counted by id."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader

from data.captioned import Sample
from data.remote import mark_of
from data.sources.stream import ShardStream, stream_paths, usable
from infer.denoising.sampling import resolution_of
from train.dataset.cache import key_of


class StreamedData(pl.LightningDataModule):
    """Shards of which only a shuffle buffer is held.

    For what `python -m train fit` cannot do: shards too many to go through before training, or compressed
    ones too large for memory. How often an image is shown is counted, not planned.

    Args:
        sources: shards: patterns such as laion/{00000..00999}.tar, or folders of them.
        resolution: width and height in pixels; null: the UNet's own.
        batch_size: images per step and device.
        flip: mirror half of the images.
        shuffle: images in each worker's shuffle buffer.
        workers: processes per device that read and decode; each needs a shard at least.
        seed: of the order.
    """

    def __init__(
        self,
        sources: list[str],
        resolution: PositiveInt | None = None,
        batch_size: PositiveInt = 16,
        flip: bool = False,
        shuffle: PositiveInt = 1000,
        workers: NonNegativeInt = 4,
        seed: NonNegativeInt = 0,
    ):
        super().__init__()
        self.sources, self.resolution, self.batch_size, self.flip = sources, resolution, batch_size, flip
        self.shuffle, self.workers, self.seed = shuffle, workers, seed

    def find(self, world_size: int) -> list[str]:
        """The shards; ValueError where they are too few for so many processes."""
        paths = [path for source in self.sources for path in stream_paths(source)]
        readers = world_size * max(1, self.workers)
        if len(paths) < readers:
            raise ValueError(
                f"{readers} processes read shards (devices x data.workers), and there are {len(paths)}: "
                "lower data.workers, or write smaller shards"
            )
        return paths

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        self.paths = self.find(trainer.world_size)
        self.resolution = resolution_of(trainer.lightning_module.pipe, self.resolution)

    def watched(self, count: int) -> list[tuple[Sample, str]]:
        """The first images of the shards, with their captions, for the monitor."""
        return [(sample, sample.caption) for sample in islice(usable(self.paths, Counter()), count)]

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        micro = trainer.accumulate_grad_batches
        stream = ShardStream(
            self.paths, self.resolution, self.batch_size, self.seed, trainer.global_rank, trainer.world_size,
            trainer.global_step * micro, self.shuffle, self.flip,
        )  # fmt: skip
        return DataLoader(
            stream, batch_size=None, num_workers=self.workers, collate_fn=dict,
            pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    @property
    def files(self) -> list[str]:
        """Name and size of each shard: a moved folder is the same, and to read all of it would take hours.

        Of one in an object store, which may not be fetched now, its mark there.
        """
        sizes = (mark_of(path) or f"{Path(path).stat().st_size:,} bytes" for path in self.paths)
        return [f"{Path(path).name} of {size}" for path, size in zip(self.paths, sizes, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """What the images and their order depend on, besides the run's options."""
        return {
            "world_size": self.trainer.world_size,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "shards": len(self.paths),
            "workers": int(self.workers),  # the parser's own types are not loaded with weights alone
            "files": self.files,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """ValueError where the images would be others, or come in another order, and some be left out."""
        now, before = self.state_dict(), dict(state_dict)
        files = zip(before.pop("files", []), now.pop("files"), strict=False)
        if different := [f"{old} is now {new}" for old, new in files if old != new]:
            raise ValueError(
                f"{len(different)} shards changed since the checkpoint was written ({different[0]}): restore "
                "them, or choose another --out"
            )
        changed = [f"{key}: {old} -> {now[key]}" for key, old in before.items() if old != now[key]]
        if changed:
            raise ValueError(
                "a stream resumes only with the same devices, workers, accumulation and shards "
                f"({'; '.join(changed)})"
            )

    def about(self) -> dict[str, Any]:
        """For `provenance.json`."""
        return {
            "sources": self.sources,
            "ordinary": [],
            "shards": len(self.paths),
            "streamed": True,
            "data_fingerprint": key_of(*self.files),
        }
