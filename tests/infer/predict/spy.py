"""A callback that watches a prediction from the command line."""

import os
from typing import Any

import lightning.pytorch as pl


class Signal(pl.Callback):
    """When batch `batch` (the first is 0) of the first rank begins, all processes get a signal."""

    def __init__(self, number: int, batch: int):
        self.number, self.batch = number, batch

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == self.batch:
            trainer.strategy.barrier()  # by now each process has its handler
            if trainer.is_global_zero:
                os.killpg(0, self.number)
