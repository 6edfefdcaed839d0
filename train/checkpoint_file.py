"""Write a checkpoint as a stream, whole or not at all."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from data.files import write_atomically


class WholeFile(TorchCheckpointIO):
    """Straight to a file beside it, which then takes its place.

    Lightning's own is put together in memory first, another 10 GB for SD 2.1, and moved from the folder for
    temporary files, which is no single act when that is another disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)

        def write(part: Path) -> None:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())

        write_atomically(path, write)
