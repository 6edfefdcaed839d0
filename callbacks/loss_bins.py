"""The loss by timestep: memorization shows at other noise levels than learning does."""

import lightning.pytorch as pl
import torch
from torch import Tensor


class LossBins(pl.Callback):
    """`loss_t0_250`, `loss_t250_500` ...: mean squared error of the samples there since the last log.

    Unweighted, also where the loss to minimize is weighted; of all ranks and accumulated batches; nan where
    no sample fell. The sums stay on the device until they are logged.

    Args:
        count: equal intervals of timesteps; 0: none are logged.
    """

    def __init__(self, count: int = 4):
        if count < 0:
            raise ValueError(f"loss_bins.count must be at least 0, not {count}")
        self.count = count
        self.sums: Tensor | None = None  # errors and samples, (2, count)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen = trainer.global_step
        kept = self.sums  # a checkpoint's are those of all ranks: one takes them up
        if kept is None or kept.shape[1] != self.count or trainer.global_rank:
            kept = torch.zeros(2, self.count)
        self.sums = kept.to(pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, *_) -> None:
        if not self.count:
            return
        steps = pl_module.noise_schedule.config.num_train_timesteps
        errors, timesteps = outputs["errors"], outputs["timesteps"]
        place = timesteps * self.count // steps
        self.sums.index_add_(1, place, torch.stack([errors, torch.ones_like(errors)]))
        stepped, self.seen = trainer.global_step != self.seen, trainer.global_step
        every = trainer.log_every_n_steps
        if not (stepped and every and (self.seen % every == 0 or trainer.should_stop)):
            return
        total, samples = trainer.strategy.reduce(self.sums, reduce_op="sum")
        edges = [-(-steps * bin // self.count) for bin in range(self.count + 1)]  # rounded up, as `place` is
        for bin, mean in enumerate(total / samples):
            pl_module.log(f"loss_t{edges[bin]}_{edges[bin + 1]}", mean)
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
