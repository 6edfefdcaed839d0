"""Endless batches of shards that are too many to go through before training, or compressed and too large.

Of one epoch's shards each process and each of its DataLoader's workers reads its own share, so each sample is
given once per epoch. An epoch is a worker's own: one with a smaller share begins the next one earlier.
Resuming needs no state but the number of batches done.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from data.captioned import THREADS, Sample, listed, samples_of
from data.remote import is_remote
from data.sources.rows import matching_files
from data.sources.shards import SHARD_SUFFIXES, is_shard, read_shards, shards_in


def stream_paths(source: str) -> list[str]:
    """Shards of a pattern or in a folder, also of an object store; ValueError where there are none."""
    if Path(source).is_dir():
        paths = shards_in(Path(source))
    elif is_remote(source):
        paths = [path for path in matching_files(source) if is_shard(Path(path))]
    else:
        paths = matching_files(source) if source.endswith(SHARD_SUFFIXES) else []
    if not paths:
        raise ValueError(f"no shards (.tar) in {source!r}: other data is for `python -m train fit`")
    return paths


def dealt(shards: int, seed: int, epoch: int, slot: int, slots: int) -> list[int]:
    """Which of the shards a reader takes in an epoch, in order: all slots' shares permute all."""
    return np.random.default_rng([seed, 4, epoch]).permutation(shards)[slot::slots].tolist()


def resumed(worker: int, workers: int, done: int) -> tuple[int, int]:
    """Which worker of the interrupted run a worker continues after `done` batches, and that one's batches.

    Batch k comes from worker k mod `workers`, and a new DataLoader begins with worker 0: so worker w
    continues v = (w + done) mod `workers`, which has given the batches v, v + workers, ... below `done`.
    """
    before = (worker + done) % workers
    return before, len(range(before, done, workers))


def usable(paths: list[str], skipped: Counter, threads: int = 1) -> Iterator[Sample]:
    """Samples in the order of the shards, encoded; all others are counted."""
    return samples_of(read_shards(paths, skipped), skipped, threads, chunk=2 * threads - 1)


class ShardStream(IterableDataset):
    """Endless batches of shards for one of `world_size` processes; only a shuffle buffer is held.

    A batch is {"id": [B names], "caption": [B first captions], "pixels": uint8 (B, variants, 3, resolution,
    resolution), "skipped": {reason: how many}}, the last counted since the same worker's batch before. A
    batch may hold the end of an epoch and the beginning of the next. One id in several shards means several
    samples. The same arguments and workers give the same batches.

    The DataLoader takes `batch_size=None`, any `num_workers`, and `collate_fn=dict`. A worker decodes in one
    thread; without workers `THREADS` decode at once.

    Args:
        paths: local files, in any order, at least one for each worker of each process.
        resolution: pixels, of the short side; centre-cropped.
        batch_size: samples in a batch of this process.
        seed: of the order of shards and samples.
        rank, world_size: the process and the number of processes.
        done_batches: batches done by this process with the same arguments and workers; what was read for them
            is read and checked again.
        shuffle: encoded samples in each worker's buffer; 1 leaves the order as it is.
        flip: adds a second, mirrored variant to the pixels.

    Raises ValueError for a shard named twice, and from the iteration for shards without a usable sample.
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
        flip: bool = False,
    ) -> None:
        self.paths = sorted(str(path) for path in paths)
        if len(set(self.paths)) < len(self.paths):
            raise ValueError("a shard is named more than once: its samples would come twice in an epoch")
        self.resolution, self.batch_size, self.seed = resolution, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.done_batches, self.shuffle, self.flip = done_batches, shuffle, flip

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers, threads = (info.id, info.num_workers, 1) if info else (0, 1, THREADS)
        slots = self.world_size * workers
        before, done = resumed(worker, workers, self.done_batches)
        drawn = self.drawn(self.rank * workers + before, slots, threads)
        for _ in itertools.islice(drawn, done * self.batch_size):
            pass
        pixels_of = methodcaller("pixels", self.resolution)
        with ThreadPoolExecutor(threads) as pool:
            while True:
                batch, skips = zip(*itertools.islice(drawn, self.batch_size), strict=True)
                pixels = torch.from_numpy(np.stack([*pool.map(pixels_of, batch)]))
                yield {
                    "id": [sample.id for sample in batch],
                    "caption": [sample.caption for sample in batch],
                    "pixels": torch.stack([pixels, pixels.flip(-1)] if self.flip else [pixels], 1),
                    "skipped": dict(sum(skips, Counter())),
                }

    def drawn(self, slot: int, slots: int, threads: int) -> Iterator[tuple[Sample, Counter]]:
        """A reader's samples of epoch after epoch, each with what was skipped since the one before."""
        skipped: Counter = Counter()  # never reset: only the first of each reason are named in the log
        reported: Counter = Counter()
        for epoch in itertools.count():
            paths = [self.paths[index] for index in dealt(len(self.paths), self.seed, epoch, slot, slots)]
            # a seed that is text: Random takes all of it, whereas sums of numbers would meet
            order = wds.shuffle(self.shuffle, initial=self.shuffle, seed=f"{self.seed} {epoch} {slot}")
            sample = None
            for sample in wds.DataPipeline(partial(usable, paths, skipped, threads), order):
                yield sample, skipped - reported
                reported = skipped.copy()
            # a share may be without a usable sample where others, or the next epoch's, are not
            if sample is None and not any(usable(self.paths, reasons := Counter())):
                raise ValueError(
                    f"no captioned image in {len(self.paths)} shards: {listed(reasons) or 'they are empty'}"
                )
