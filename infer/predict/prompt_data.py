"""The Lightning data module of `python -m infer predict`: the requests whose images are missing."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from infer.predict.options import GenerateOptions
from infer.predict.parts import finished


class PromptData(pl.LightningDataModule):
    """The images of the options, but for those in the run folder already.

    Prompts stay on the disk (`data/prompts/store.py`): a process holds those of its batch.
    """

    def __init__(self, options: GenerateOptions):
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # few may be missing
        self.options, self.requests = options, options.requests()

    def identity(self) -> dict[str, Any]:
        return self.options.identity(self.requests)

    def predict_dataloader(self) -> DataLoader:
        """This rank's batches of what is missing. Lightning's own sharding fails where a rank gets none.

        Each rank looks at its share of what is there; that all see the same is one reduction.
        """
        trainer = self.trainer
        rank, world_size = trainer.global_rank, trainer.world_size
        ready = finished(Path(trainer.default_root_dir), self.requests, rank, world_size)
        ready = torch.from_numpy(ready.astype(np.uint8)).to(trainer.strategy.root_device)
        ready = trainer.strategy.reduce(ready, reduce_op="max").cpu().numpy()
        self.missing = np.flatnonzero(ready == 0)
        size = min(self.options.batch_size, -(-len(self.requests) // world_size))  # none idles
        batches = [Subset(self.requests, rows) for rows in whole_batches(self.missing, size)]
        return DataLoader(batches[rank::world_size], batch_size=None, collate_fn=list)


def whole_batches(missing: np.ndarray, size: int) -> list[np.ndarray]:
    """The missing rows, in the batches of a whole run: the last bits of a row depend on its batch."""
    ends = np.flatnonzero(np.diff(missing // size)) + 1
    return np.split(missing, ends) if len(missing) else []
