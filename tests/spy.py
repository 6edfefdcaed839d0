"""Callbacks that look into a training run, or stop it, from the command line."""

import time
from pathlib import Path

import lightning.pytorch as pl
import torch


class Spy(pl.Callback):
    """After each batch, `<rank>-<batch>.pt`: what the UNet was given, and its first weights."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.trained.register_forward_pre_hook(self.look)

    def look(self, unet: torch.nn.Module, given: tuple) -> None:
        if unet.training:
            self.noisy, self.timesteps, self.embedding = (x.detach().clone() for x in given)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_index: int) -> None:
        seen = {
            "index": torch.from_numpy(batch["index"]),
            "noisy": self.noisy,
            "timesteps": self.timesteps,
            "embedding": self.embedding,
            "step": trainer.global_step,
            "weight": pl_module.trained.conv_in.weight.detach().clone(),
        }
        torch.save(seen, self.folder / f"{trainer.global_rank}-{batch_index}.pt")


class Stop(pl.Callback):
    """At the end of optimizer step `step` (null: when all are done), hang after touching `flag`, or fail."""

    def __init__(self, step: int | None, flag: str | None = None):
        self.step, self.flag = step, flag

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step == self.step:
            self.stop()

    def on_train_end(self, trainer: pl.Trainer, *_) -> None:
        if self.step is None:
            self.stop()

    def stop(self) -> None:
        if self.flag is None:
            raise RuntimeError("stopped by the test")
        Path(self.flag).touch()
        time.sleep(600)
