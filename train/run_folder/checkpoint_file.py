"""Write a checkpoint complete or not at all, and read one that this project wrote."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from data.files import write_atomically

KEYS = {"state_dict", "global_step", "loops", "optimizer_states", "callbacks"}


class WholeFile(TorchCheckpointIO):
    """Write directly to a temporary file in the same folder, and rename it.

    Lightning's own way puts a checkpoint together in memory, another 10 GB for SD 2.1, and moves it from the
    folder for temporary files, which is not atomic from another disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), lambda part: save(checkpoint, part))


def save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path, *keys: str) -> dict[str, Any]:
    """The checkpoint, memory-mapped; ValueError for a file that is broken, or lacks one of the keys."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of many kinds; its text recommends to load pickled code
        raise ValueError(
            f"{path} is not a readable checkpoint ({type(error).__name__}): restore it, or delete it to "
            "start again"
        ) from error
    if lacking := (KEYS | {*keys}) - set(checkpoint if isinstance(checkpoint, dict) else ()):
        raise ValueError(
            f"{path} is not a checkpoint of this command (no {', '.join(sorted(lacking))}): restore it, or "
            "delete it to start again"
        )
    return checkpoint
