"""Stop a run that broke, before its last good checkpoint is overwritten."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def finite(parameters: Any) -> Tensor:
    """Whether all weights that this rank holds are finite, as a tensor on their device."""
    held = [p.detach().to_local() if isinstance(p, DTensor) else p.detach() for p in parameters]
    held = [p for p in held if p.numel()]  # the fifth rank holds nothing of a bias of four
    norms = torch._foreach_norm(held, float("inf"))  # nan and inf go through
    return torch.stack([norm.float() for norm in norms]).isfinite().all()


class Finite(pl.Callback):
    """Raise ValueError when a loss or a weight is not finite: the run ends with one line and exit code 1.

    The first such step is recorded on the device. All ranks check it when the loss is logged
    (trainer.log_every_n_steps), at the end, and, with the weights, before any checkpoint is written: no other
    step waits for the device, and no broken weights are kept. `last.ckpt` stays that of an earlier step, from
    which the same command continues.
    """

    never = 2**62  # no step was broken

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first = torch.tensor(self.never, device=pl_module.device)
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, *_) -> None:
        step = trainer.global_step
        broken = ~outputs["loss"].isfinite() & (self.first == self.never)
        # a batch of an accumulated step belongs to the step that is not finished yet
        number = step if step != self.last_step else step + 1
        self.first = torch.where(broken, number, self.first)
        every = trainer.log_every_n_steps
        if step != self.last_step and every and step % every == 0:
            self.check(trainer)
        self.last_step = step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the export and the last checkpoint: this callback is the first in the list."""
        self.check(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Called on all ranks, before the file is opened."""
        self.check(trainer, pl_module)

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule | None = None) -> None:
        first = self.first.clone()
        if pl_module is not None:
            first = torch.where(finite(pl_module.parameters()), first, first.clamp(max=trainer.global_step))
        step = int(trainer.strategy.reduce(first, reduce_op="min"))
        if step == self.never:
            return
        if not trainer.is_global_zero:  # the first rank reports it
            raise SystemExit(1)
        path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        kept = f", or continue from an earlier step ({path})" if path.exists() else ""
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        raise ValueError(
            f"the training broke in step {step:,}: its loss or weights are nan or infinite. Lower the "
            f"learning rate ({rate:.3g}) and start with another --out{kept}; a smaller "
            "trainer.gradient_clip_val or trainer.precision 32 may help"
        )
