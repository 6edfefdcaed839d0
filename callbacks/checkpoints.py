"""The checkpoint that an interrupted run goes on from."""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoints(ModelCheckpoint):
    """`last.ckpt` every so many optimizer steps, and at the end of fit.

    The one of the last step comes after the export and all else that ends a fit: Lightning calls none of it
    when it goes on from a checkpoint that has no step left.
    """

    def __init__(self, folder: Path, every_n_steps: int):
        super().__init__(
            folder,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,  # a run folder that was moved keeps one last.ckpt
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.seen = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        """Not within an accumulated step: Lightning would, on the first batch after a restart."""
        if self.seen < trainer.global_step < trainer.max_steps:
            super().on_train_batch_end(trainer, *args)
        self.seen = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)
