"""Latents and text embeddings on disk: computed once, by all processes together, and read memory-mapped.

A folder of safetensors of `SHARD` rows each. A file does not depend on the process that wrote it, so any
number of processes completes an interrupted cache.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from data.files import DAY, digest, remove_temporary_files, write_atomically

SHARD = 256  # rows in a file
FORMAT = 4  # of the files, and of how an image is cropped: raise it where either changes
BATCH = 32  # rows encoded at a time
Encode = Callable[[Sequence[int]], dict[str, Tensor]]


def key_of(*parts: object) -> str:
    """A name that changes with any of the parts, and with the format of the cache."""
    return digest(FORMAT, SHARD, *parts)[:20]


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def missing_shards(folder: Path, rows: int) -> list[int]:
    """Numbers of the files that are still to be written. What a killed run left a day ago is removed."""
    remove_temporary_files(folder, older_than=DAY)
    return [number for number in range(-(-rows // SHARD)) if not shard_path(folder, number).exists()]


def check_room(folder: Path, rows: int, size: int, name: str) -> None:
    """Raise ValueError when the disk lacks room for `rows` of `size` bytes, before hours of work."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = rows * size, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the cache of {name} needs {decimal(needed)} and {folder} has {decimal(free)} free: "
            "give --data.cache a folder with room, or null to encode each batch anew"
        )


def fill(folder: Path, rows: int, shards: Sequence[int], encode: Encode, name: str, bar: bool) -> None:
    """Write these shards of `rows` in all. `encode` computes the tensors; `name` is for the bar."""
    spans = [range(number * SHARD, min(rows, (number + 1) * SHARD)) for number in shards]
    with tqdm(total=sum(map(len, spans)), desc=f"encode {name}", disable=not bar) as progress:
        for number, span in zip(shards, spans, strict=True):
            parts = []
            for start in range(span.start, span.stop, BATCH):
                numbers = range(start, min(start + BATCH, span.stop))
                parts.append(encode(numbers))
                progress.update(len(numbers))
            shard = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            write_atomically(shard_path(folder, number), partial(save_file, shard))


def on_first_rank(strategy: Any, function: Callable[[], Any]) -> Any:
    """What the function returns on the first rank, on all ranks; if it raises, the other ranks exit."""
    result = error = None
    if strategy.is_global_zero:
        try:
            result = function()
        except BaseException as caught:  # whichever: the others wait for the answer
            error = caught
    result, failed = strategy.broadcast((result, error is not None))
    if error is not None:
        raise error
    if failed:  # the first rank reports it
        raise SystemExit(1)
    return result


class Shards:
    """Rows of a complete folder, by number; FileNotFoundError or ValueError for a missing or broken shard."""

    def __init__(self, folder: Path, rows: int):
        self.tensors: list[dict[str, Tensor]] = []
        for number in range(-(-rows // SHARD)):
            path, expected = shard_path(folder, number), min(SHARD, rows - number * SHARD)
            try:
                with safe_open(path, "pt") as file:  # memory-mapped
                    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                if any(len(values) != expected for values in tensors.values()):
                    raise SafetensorError(f"not {expected} rows")
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{path} is missing, though another process wrote it: data.cache must be a folder that "
                    "all machines share"
                ) from error
            except SafetensorError as error:
                raise ValueError(f"{path} is broken ({error}): delete it and start again") from error
            self.tensors.append(tensors)

    def rows(self, name: str, numbers: Sequence[int]) -> Tensor:
        """(len(numbers), ...), in the precision of the cache."""
        tensors = self.tensors
        return torch.stack([tensors[number // SHARD][name][number % SHARD] for number in numbers])

    def all_of(self, name: str) -> Tensor:
        """The rows of all shards, in order."""
        return torch.cat([tensors[name] for tensors in self.tensors])
