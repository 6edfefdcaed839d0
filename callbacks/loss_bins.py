"""The loss by timestep: memorization shows at other noise levels than learning does."""

import lightning.pytorch as pl
import torch
from jsonargparse.typing import NonNegativeInt
from torch import Tensor


class LossBins(pl.Callback):
    """Log `loss_t0_250`, `loss_t250_500` ...: mean squared errors of each bin's samples since the last log.

    Unweighted, also where the training loss is weighted; over all ranks and accumulated batches; NaN for a
    bin without samples. The sums stay on the device until they are logged.

    Args:
        count: number of equal intervals of timesteps; 0: nothing is logged.
    """

    def __init__(self, count: NonNegativeInt = 4):
        self.count = count
        self.sums: Tensor | None = None  # errors and samples, (2, count)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last_step = trainer.global_step
        sums = self.sums  # a checkpoint's are those of all ranks: only the first continues with them
        if sums is None or sums.shape[1] != self.count or trainer.global_rank:
            sums = torch.zeros(2, self.count)
        self.sums = sums.to(pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, *_) -> None:
        if not self.count:
            return
        steps = pl_module.noise_scheduler.config.num_train_timesteps
        errors, timesteps = outputs["errors"], outputs["timesteps"]
        bins = timesteps * self.count // steps
        self.sums.index_add_(1, bins, torch.stack([errors, torch.ones_like(errors)]))
        stepped, self.last_step = trainer.global_step != self.last_step, trainer.global_step
        every = trainer.log_every_n_steps
        if not (stepped and every and (self.last_step % every == 0 or trainer.should_stop)):
            return
        total, samples = trainer.strategy.reduce(self.sums, reduce_op="sum")
        edges = [-(-steps * edge // self.count) for edge in range(self.count + 1)]  # rounded up, as `bins`
        for number, mean in enumerate(total / samples):
            pl_module.log(f"loss_t{edges[number]}_{edges[number + 1]}", mean)
        self.sums = torch.zeros_like(self.sums)

    def state_dict(self) -> dict:
        """Called on all ranks."""
        if self.sums is None:
            return {}
        sums = self.sums.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return {"sums": sums.cpu()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.sums = state_dict.get("sums")
