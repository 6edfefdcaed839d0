"""Shards that do not fit in memory: batches without end, of which nothing is held but a shuffle buffer.

Of one epoch's shards each process and each of its DataLoader's workers reads its own share, so each sample is
given once per epoch. An epoch is a worker's own: one with a smaller share begins the next one earlier, nobody
waits. Resuming needs no state but the number of batches done.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from data.captioned import SHARD_SUFFIXES, Sample, checked, listed, shard_paths
from data.sources.shards import read_shards, shards_in

log = logging.getLogger(__name__)
UNDECODABLE = "undecodable images"
LOOK_AHEAD = 1000  # samples, in search of substitutes


def stream_paths(source: str) -> list[str]:
    """Shards of a pattern, or in a folder.

    FileNotFoundError for a pattern that matches nothing, ValueError for what is no shards.
    """
    if Path(source).is_dir():
        paths = shards_in(Path(source))
    else:
        paths = shard_paths(source) if source.endswith(SHARD_SUFFIXES) else []
    if not paths:
        raise ValueError(
            f"streams are of webdataset shards (.tar): {source!r} is neither a pattern of them nor a folder "
            "with some; for other data use `python -m train fit`"
        )
    return paths


def dealt(shards: int, seed: int, epoch: int, slot: int, slots: int) -> list[int]:
    """Which of the shards a reader takes in an epoch, in order: all slots' shares permute all."""
    return np.random.default_rng([seed, 4, epoch]).permutation(shards)[slot::slots].tolist()


def resumed(worker: int, workers: int, done: int) -> tuple[int, int]:
    """Whose place a worker takes when a process goes on after `done` batches, and the batches done there.

    Batch k comes from worker k mod `workers`, and a new DataLoader begins with worker 0: so worker w goes on
    as v = (w + done) mod `workers`, which has given those of the batches v, v + workers, ... below `done`.
    """
    place = (worker + done) % workers
    return place, len(range(place, done, workers))


def usable(paths: list[str], skipped: Counter) -> Iterator[Sample]:
    """Samples as they lie in the shards, still encoded; all others are counted."""
    return (sample for row in read_shards(paths, skipped) if (sample := checked(row, skipped)))


def pixels_of(sample: Sample, resolution: int) -> np.ndarray | Exception:
    """uint8 (3, resolution, resolution), or why not: some damage shows only when an image is decoded."""
    try:
        return sample.pixels(resolution)
    except Exception as error:  # PIL raises half a dozen kinds
        return error


class ShardStream(IterableDataset):
    """Endless batches of webdataset shards, as img2dataset writes them, for one of `world_size` processes.

    A batch is {"id": [B names], "caption": [B tuples of all captions], "pixels": uint8 (B, 3, resolution,
    resolution), "skipped": {reason: how many}}, the last counted since the same worker's batch before.
    Batches are whole: one may hold the end of an epoch and the beginning of the next. The same id in several
    shards is no error here, as nobody sees all ids: these are different samples of one name.

    The DataLoader takes `batch_size=None`, any `num_workers`, and `collate_fn=dict`, which leaves batches as
    they are (its default makes lists of the tuples).

    The same arguments and workers give the same batches. `done_batches=n` goes on with the n-th: what was
    read before is read and checked again (`layouts_image.problem`, which decodes GIF, BMP and AVIF only), but
    not decoded. Each iteration begins there anew.

    An image that cannot be decoded though it passed the checks is counted, and a later one of the same worker
    stands in for it (and comes again in its turn), so that the number of batches alone says where a run is.

    Args:
        paths: local files (`stream_paths` expands patterns and folders); their order is of no matter.
        resolution: pixels, of the short side; centre-cropped.
        batch_size: samples in a batch of this process.
        seed: not negative.
        rank, world_size: which process this is, of how many.
        done_batches: how many this process has done, of the same arguments and the same number of workers.
        shuffle: samples in each worker's buffer, encoded, the batch aside; 1 leaves them as they lie.

    Raises ValueError for arguments out of range; from the iteration, if there are fewer shards than processes
    x workers, or if nothing can be used: not one sample of all shards, or of the next 1000 + `batch_size`
    samples that could stand in too few can be decoded.
    """

    def __init__(
        self,
        paths: list[str],
        resolution: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        done_batches: int = 0,
        shuffle: int = 1000,
    ) -> None:
        if min(resolution, batch_size, shuffle) < 1 or min(seed, done_batches) < 0:
            raise ValueError(
                f"resolution, batch_size and shuffle must be at least 1, seed and done_batches at least 0, "
                f"not {resolution}, {batch_size}, {shuffle}, {seed} and {done_batches}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to below world_size, not {rank} of {world_size}")
        self.paths = sorted(str(path) for path in paths)
        if len(set(self.paths)) < len(self.paths):
            raise ValueError("a shard is named more than once: its samples would come twice in an epoch")
        self.resolution, self.batch_size, self.seed = resolution, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.done_batches, self.shuffle = done_batches, shuffle

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        slots = self.world_size * workers
        if len(self.paths) < slots:
            raise ValueError(
                f"{self.world_size} processes with {workers} workers each need at least {slots} shards, "
                f"there are {len(self.paths)}: set fewer workers, or write smaller shards"
            )
        place, done = resumed(worker, workers, self.done_batches)
        drawn = self.drawn(self.rank * workers + place, slots)
        for _ in itertools.islice(drawn, done * self.batch_size):
            pass
        yield from self.batches(drawn)

    def drawn(self, slot: int, slots: int) -> Iterator[tuple[Sample, Counter]]:
        """A reader's samples of epoch after epoch, each with what was skipped since the one before."""
        skipped: Counter = Counter()  # never reset: `checked` names only the first of each reason in the log
        reported: Counter = Counter()
        for epoch in itertools.count():
            paths = [self.paths[index] for index in dealt(len(self.paths), self.seed, epoch, slot, slots)]
            # a seed that is text: Random takes all of it, whereas sums of numbers would meet
            order = wds.shuffle(self.shuffle, initial=self.shuffle, seed=f"{self.seed} {epoch} {slot}")
            sample = None
            for sample in wds.DataPipeline(partial(usable, paths, skipped), order):
                yield sample, skipped - reported
                reported = skipped.copy()
            # a share may have nothing to give where others have, and have some in the next epoch
            if sample is None and not any(usable(self.paths, found := Counter())):
                raise ValueError(
                    f"no captioned image in {len(self.paths)} shards: {listed(found) or 'they are empty'}"
                )

    def batches(self, drawn: Iterator[tuple[Sample, Counter]]) -> Iterator[dict[str, Any]]:
        """Batch k is of the samples k B to k B + B - 1, with substitutes from those that follow."""
        ahead: list[tuple[Sample, Counter]] = []
        while True:
            shown: list[tuple[Sample, np.ndarray]] = []
            skipped: Counter = Counter()
            for _ in range(self.batch_size):
                sample, found = ahead.pop(0) if ahead else next(drawn)
                skipped.update(found)
                pixels = pixels_of(sample, self.resolution)
                if isinstance(pixels, Exception):
                    skipped[UNDECODABLE] += 1
                    log.warning("skipped %r: %s: %s", sample.id, UNDECODABLE, pixels)
                else:
                    shown.append((sample, pixels))
            for index in itertools.count():
                if len(shown) == self.batch_size:
                    break
                if index == LOOK_AHEAD + self.batch_size:
                    raise ValueError(
                        f"of {index} samples after {sample.id!r} only {len(shown)} can be decoded"
                    )
                if index == len(ahead):
                    ahead.append(next(drawn))
                sample, _ = ahead[index]
                if not isinstance(pixels := pixels_of(sample, self.resolution), Exception):
                    shown.append((sample, pixels))
            yield {
                "id": [sample.id for sample, _ in shown],
                "caption": [sample.captions for sample, _ in shown],
                "pixels": torch.from_numpy(np.stack([pixels for _, pixels in shown])),
                "skipped": dict(skipped),
            }
