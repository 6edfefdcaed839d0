"""Exponential moving average of the trained part only."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter

from data.ranges import ShareBelowOne


def trained(pl_module: pl.LightningModule) -> list[Parameter]:
    return [parameter for parameter in pl_module.parameters() if parameter.requires_grad]


class EMA(pl.Callback):
    """Average the trained parameters; validation, monitor and export use the average.

    average <- k average + (1 - k) weights, k = min(decay, (1 + step) / (10 + step)): the early, fast-moving
    weights are forgotten. Lightning's own averaging copies the whole module, its frozen parts included.

    Args:
        decay: largest k; 0: no average.
    """

    def __init__(self, decay: ShareBelowOne = 0.999):
        self.decay = decay
        self.average: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.decay:
            return
        weights = self.weights = [p.detach() for p in trained(pl_module)]
        if self.average:  # resumed
            self.average = [placed(a, w) for a, w in zip(self.average, weights, strict=True)]
        else:
            self.average = [w.clone() for w in weights]
        self.last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        step = trainer.global_step
        if not self.decay or step == self.last_step:  # a batch of an accumulated step
            return
        self.last_step = step
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.weights, 1 - keep)

    @torch.no_grad()
    def swap(self, pl_module: pl.LightningModule) -> None:
        for average, parameter in zip(self.average, trained(pl_module), strict=True):
            raw = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(raw)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.average:
            self.swap(pl_module)

    on_validation_end = on_validation_start

    def state_dict(self) -> dict:
        """Whole tensors, also where the weights are sharded; called on all ranks."""
        return {"average": [entire(average) for average in self.average]}

    def load_state_dict(self, state_dict: dict) -> None:
        self.average = state_dict["average"]


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """With the dtype, device and sharding of `like`."""
    if isinstance(like, DTensor):
        return distribute_tensor(whole.to(like.device, like.dtype), like.device_mesh, like.placements)
    return whole.to(like)


def entire(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on the CPU of the first rank, which writes it; other tensors unchanged."""
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if torch.distributed.get_rank() == 0 else whole.new_empty(0)


@contextmanager
def averaged(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[bool]:
    """Swap the average into the module for the block; yields whether there is one.

    Called on all ranks: sharded weights are gathered in the first rank's pipeline.
    """
    ema = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)
    kept = bool(ema and ema.average)
    if kept:
        ema.swap(pl_module)
    if any(isinstance(parameter, DTensor) for parameter in pl_module.parameters()):
        pl_module.gather()
    try:
        yield kept
    finally:
        if kept:
            ema.swap(pl_module)
