"""Latents and text embeddings on disk: computed once, by all processes together, and read memory-mapped.

A folder of safetensors of `SHARD` rows each. Which process made one does not show, so a cache that was cut
off is gone on with by any number of processes.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from data.captioned import Sample
from data.files import DAY, digest, remove_temporary_files, write_atomically

SHARD = 256  # rows in a file
FORMAT = 3  # of the files, and of how an image is cut: raise it where either changes
BATCH = 32  # rows encoded at a time
Encode = Callable[[Sequence[int]], dict[str, Tensor]]


def key_of(*parts: object) -> str:
    """A name for what depends on all of these; a change in any gives another."""
    return digest(FORMAT, SHARD, *parts)[:20]


def content_key(samples: Iterable[Sample]) -> str:
    """Of the encoded images, in their order."""
    return key_of(*(digest(sample.image) for sample in samples))


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def missing_shards(folder: Path, rows: int) -> list[int]:
    """Numbers of those that are still to be written; one process looks for all."""
    return [number for number in range(-(-rows // SHARD)) if not shard_path(folder, number).exists()]


def check_room(folder: Path, rows: int, size: int, name: str) -> None:
    """ValueError when the disk has not that many bytes: before hours of work, not after."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = rows * size, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the cache of {name} needs {needed / 2**30:.1f} GiB and {folder} has {free / 2**30:.1f} free: "
            "give --data.cache a folder with room, or null to encode each batch anew"
        )


def fill(folder: Path, rows: int, shards: Sequence[int], encode: Encode, name: str, bar: bool) -> None:
    """Write these shards. `encode` makes tensors of row numbers, `rows` in all; `name` is for the bar."""
    remove_temporary_files(folder, older_than=DAY)
    spans = [range(number * SHARD, min(rows, (number + 1) * SHARD)) for number in shards]
    with tqdm(total=sum(map(len, spans)), desc=f"encode {name}", disable=not bar) as progress:
        for number, span in zip(shards, spans, strict=True):
            parts = []
            for start in range(span.start, span.stop, BATCH):
                numbers = range(start, min(start + BATCH, span.stop))
                parts.append(encode(numbers))
                progress.update(len(numbers))
            path = shard_path(folder, number)
            shard = {key: torch.cat([each[key] for each in parts]) for key in parts[0]}
            write_atomically(path, partial(save_file, shard))  # two runs may fill one cache at a time


class Shards:
    """Rows of a filled folder by number. FileNotFoundError for a missing shard, ValueError for a broken."""

    def __init__(self, folder: Path, rows: int):
        self.tensors: list[dict[str, Tensor]] = []
        for number in range(-(-rows // SHARD)):
            path = shard_path(folder, number)
            try:
                with safe_open(path, "pt") as file:  # memory-mapped
                    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{path} is not there, though another process wrote it: data.cache must be a folder that "
                    "all machines share"
                ) from error
            except SafetensorError as error:
                raise ValueError(f"{path} is broken ({error}): delete it, and it is made again") from error
            wanted = min(SHARD, rows - number * SHARD)
            if any(len(values) != wanted for values in tensors.values()):
                raise ValueError(f"{path} is broken (not {wanted} rows): delete it, and it is made again")
            self.tensors.append(tensors)

    def rows(self, name: str, numbers: Sequence[int]) -> Tensor:
        """float32 of shape (len(numbers), ...)."""
        index = np.asarray(numbers)
        shards, within = np.divmod(index, SHARD)
        first = self.tensors[shards[0]][name]
        if (shards == shards[0]).all():
            return first[torch.from_numpy(within)].float()
        out = torch.empty(len(index), *first.shape[1:])
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            out[torch.from_numpy(here)] = self.tensors[shard][name][torch.from_numpy(within[here])].float()
        return out
