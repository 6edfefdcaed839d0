"""Callbacks that watch a training run, or stop it, from the command line."""

import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from callbacks.ema import EMA


class Spy(pl.Callback):
    """After each batch, `<rank>-<batch>.pt`: what the UNet was given, its errors and first weights."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.unet.register_forward_pre_hook(self.remember)

    def remember(self, unet: torch.nn.Module, given: tuple) -> None:
        if unet.training and torch.is_grad_enabled():  # not the pass without captions of skip_rms
            self.noisy, self.timesteps, self.embedding = (x.detach().clone() for x in given)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_index: int) -> None:
        if "index" in batch:
            shown = {"index": torch.from_numpy(batch["index"])}
        else:  # of a stream
            shown = {name: batch[name] for name in ("id", "caption", "skipped")}
        seen = shown | {
            "noisy": self.noisy,
            "timesteps": self.timesteps,
            "embedding": self.embedding,
            "errors": outputs["errors"],
            "step": trainer.global_step,
            "weight": pl_module.unet.conv_in.weight.detach().clone(),
        }
        torch.save(seen, self.folder / f"{trainer.global_rank}-{batch_index}.pt")


class KillAfterCheckpoint(pl.Callback):
    """Kill the process when the first checkpoint is complete, before its step is logged."""

    def __init__(self, flag: str):
        self.flag = Path(flag)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        save = trainer.save_checkpoint

        def save_and_die(*args, **kwargs) -> None:
            save(*args, **kwargs)
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)

        trainer.save_checkpoint = save_and_die


class Held(pl.Callback):
    """After the last step, `<rank>.json`: bytes of weights, gradients, moments and averages on this rank."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        self.sizes = {"gradients": held(p.grad for p in pl_module.unet.parameters())}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))
        states = trainer.optimizers[0].state.values()
        self.sizes |= {
            "weights": held(pl_module.unet.parameters()),
            "moments": held(state[name] for state in states for name in ("exp_avg", "exp_avg_sq")),
            "averages": held(ema.average),
        }
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.sizes))


class Poison(pl.Callback):
    """A weight of the last rank becomes nan before optimizer step `step` (the first is 1), or after it."""

    def __init__(self, step: int, after: bool = False):
        self.step, self.after = step, after

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        if not self.after and trainer.global_step + 1 == self.step:
            self.poison(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        if self.after and trainer.global_step == self.step:
            self.poison(trainer, pl_module)

    def poison(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weight = pl_module.unet.conv_in.weight.detach()
        if trainer.global_rank == trainer.world_size - 1:
            (weight.to_local() if isinstance(weight, DTensor) else weight).fill_(torch.nan)


def held(tensors: Iterable[Tensor]) -> int:
    parts = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return sum(part.numel() * part.element_size() for part in parts)


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


class Slow(pl.Callback):
    """Each batch takes so many seconds longer."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_batch_end(self, *_) -> None:
        time.sleep(self.seconds)


class Die(pl.Callback):
    """Kill this rank's process at the end of an optimizer step."""

    def __init__(self, step: int, rank: int):
        self.step, self.rank = step, rank

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            os.kill(os.getpid(), signal.SIGKILL)
