"""Data module of shards that do not fit in memory: read as they come, encoded each step, counted by id."""

from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from data.captioned import Sample
from data.sources.shards import read_stats
from data.sources.stream import ShardStream, pixels_of, stream_paths, usable
from infer.denoising.sampling import side_of
from train.dataset.cache import key_of


class StreamedData(pl.LightningDataModule):
    """Webdataset shards, as img2dataset writes them, of which only a shuffle buffer is held.

    How often an image is shown is counted, and not planned: what is exact needs `python -m train fit`.

    Args:
        sources: shards: patterns such as laion/{00000..00999}.tar, or folders of them.
        resolution: side in pixels; null: the UNet's own.
        batch_size: images per step and device.
        flip: mirror half of the images.
        shuffle: images in each worker's shuffle buffer.
        workers: processes per device that read and decode; each needs a shard at least.
        seed: of the order.
    """

    def __init__(
        self,
        sources: list[str],
        resolution: int | None = None,
        batch_size: int = 16,
        flip: bool = False,
        shuffle: int = 1000,
        workers: int = 4,
        seed: int = 0,
    ):
        super().__init__()
        self.sources, self.resolution, self.batch_size, self.flip = sources, resolution, batch_size, flip
        self.shuffle, self.workers, self.seed = shuffle, workers, seed
        at_least = {"resolution": 1, "batch_size": 1, "shuffle": 1, "workers": 0, "seed": 0}
        for name, least in at_least.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"data.{name} must be at least {least}, not {value}")
        for source in sources:
            if "?" in source:
                raise ValueError(f"shards are streamed as they are: leave the options of {source!r} out")
        self.skipped: Counter[str] = Counter()

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
        check_batch(self.paths, self.batch_size * trainer.world_size * trainer.accumulate_grad_batches)
        self.side = side_of(trainer.lightning_module.pipe, self.resolution)

    def watched(self, count: int) -> list[tuple[Sample, str]]:
        """The first images of the shards, with their captions: what to look at while training."""
        found = chain.from_iterable(usable([path], Counter()) for path in self.paths)
        shown = (sample for sample in found if not isinstance(pixels_of(sample, self.side), Exception))
        return [(sample, sample.caption) for sample in islice(shown, count)]

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        micro = trainer.accumulate_grad_batches
        stream = ShardStream(
            self.paths, self.side, self.batch_size, self.seed, trainer.global_rank, trainer.world_size,
            trainer.global_step * micro, self.shuffle,
        )  # fmt: skip
        return DataLoader(
            Prepared(stream, self.flip),
            batch_size=None,
            num_workers=self.workers,
            collate_fn=dict,
            pin_memory=torch.cuda.is_available(),
        )

    def order(self) -> dict[str, int]:
        """What the order of the images depends on, besides the options of the run."""
        return {
            "world_size": self.trainer.world_size,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "shards": len(self.paths),
            "workers": self.workers,
        }

    def state_dict(self) -> dict[str, int]:
        return self.order()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """ValueError where the images would come in another order: some would be left out."""
        changed = [
            f"{key}: {state_dict[key]} -> {value}"
            for key, value in self.order().items()
            if state_dict[key] != value
        ]
        if changed:
            raise ValueError(
                "a stream goes on in its order only with the same devices, workers, accumulation and shards "
                f"({'; '.join(changed)})"
            )

    def about(self) -> dict[str, Any]:
        """For `provenance.json`."""
        return {
            "sources": self.sources,
            "ordinary": [],
            "shards": len(self.paths),
            "streamed": True,
            # names and sizes: a moved folder is the same, and to read all that it holds would take hours
            "data_fingerprint": key_of(
                *((Path(path).name, Path(path).stat().st_size) for path in self.paths)
            ),
        }


def check_batch(paths: list[str], global_batch: int) -> None:
    """ValueError when one step would show more than there is, where img2dataset counted all shards."""
    images = 0
    for path in paths:
        if (stats := read_stats(path)) is None:
            return
        images += stats["successes"]
        if images >= global_batch:  # files of statistics are opened until it is clear, and no more
            return
    raise ValueError(
        f"a step takes {global_batch} images (batch, devices and accumulation) and the shards have {images}: "
        "lower data.batch_size, or give more shards"
    )


class Prepared(IterableDataset):
    """The stream's batches as the model takes them: pixels (B, sides, 3, H, W), one caption an image."""

    def __init__(self, stream: ShardStream, flip: bool):
        self.stream, self.flip = stream, flip

    def __iter__(self):
        for batch in self.stream:
            pixels = batch["pixels"]
            yield batch | {
                "pixels": torch.stack([pixels, pixels.flip(-1)] if self.flip else [pixels], 1),
                "caption": [captions[0] for captions in batch["caption"]],
            }
