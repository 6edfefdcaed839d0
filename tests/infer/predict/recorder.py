"""Callbacks that write down what each step gave, or break it, from the command line."""

from pathlib import Path

import lightning.pytorch as pl
import torch


class Record(pl.Callback):
    """After each batch, `<rank>-<batch>.pt`: the samples' errors and timesteps."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True, parents=True)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_index: int) -> None:
        kept = {"errors": outputs["errors"], "timesteps": outputs["timesteps"]}
        torch.save(kept, self.folder / f"{trainer.global_rank}-{batch_index}.pt")


class Poison(pl.Callback):
    """A weight becomes nan before optimizer step `step` (the first is 1), or after it."""

    def __init__(self, step: int, after: bool = False):
        self.step, self.after = step, after

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        if not self.after and trainer.global_step + 1 == self.step:
            self.poison(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        if self.after and trainer.global_step == self.step:
            self.poison(pl_module)

    def poison(self, pl_module: pl.LightningModule) -> None:
        with torch.no_grad():
            pl_module.unet.conv_in.weight[0, 0, 0, 0] = torch.nan
