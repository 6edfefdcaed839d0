"""The checkpoint from which an interrupted run continues."""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger


class Checkpoints(ModelCheckpoint):
    """Write `last.ckpt` every so many optimizer steps, and at the end of fit.

    The last one comes after the export and all other results: Lightning writes none of them when it continues
    from a checkpoint that has no step left.
    """

    def __init__(self, folder: Path, every_n_steps: int):
        self.every_n_steps = every_n_steps
        super().__init__(
            folder,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,  # a run folder that was moved keeps one last.ckpt
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        """Not within an accumulated step: Lightning would save there, on the first batch after a restart."""
        if self.last_step < trainer.global_step < trainer.max_steps:
            if trainer.global_step % self.every_n_steps == 0:
                save_metrics(trainer)
            super().on_train_batch_end(trainer, *args)
        self.last_step = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)


def save_metrics(trainer: pl.Trainer) -> None:
    """Write `metrics.csv` with the row of this step, which Lightning logs only after its callbacks.

    A run that is killed after the checkpoint continues after this step. `join_metrics` of
    `train/run_folder/metrics_file.py` removes the row that Lightning adds.
    """
    step, every = trainer.global_step, trainer.log_every_n_steps
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            if every and step % every == 0:
                logger.log_metrics(trainer.logged_metrics | {"epoch": trainer.current_epoch}, step - 1)
            logger.save()
