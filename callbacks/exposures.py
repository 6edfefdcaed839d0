"""Count how often each image was really shown."""

import logging
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import torch

log = logging.getLogger(__name__)


class Exposures(pl.Callback):
    """`exposures.parquet` at the end of fit: id, caption, duplicated, triggered, times_shown, times_skipped.

    The counts are exact on several ranks and after resumes. `caption` is an image's first one, with
    its trigger and before random edits. Skipped is what was shown and left out of the loss (model.skip_rms).
    """

    def __init__(self) -> None:
        self.counts: torch.Tensor | None = None  # shown and skipped, (2, images)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        size = len(trainer.datamodule.everything)
        kept = self.counts
        if kept is None or trainer.global_rank:  # a checkpoint holds the sum over ranks: one takes it up
            kept = torch.zeros(2, size, dtype=torch.long)
        if kept.shape[1] != size:
            raise ValueError(
                f"the checkpoint counted {kept.shape[1]} images, the data now has {size}: not the same run"
            )
        self.counts = kept
        self.skipped = torch.zeros(size, dtype=torch.long, device=pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, *_
    ) -> None:
        index = torch.from_numpy(batch["index"])
        self.counts[0] += torch.bincount(index, minlength=self.counts.shape[1])
        if "kept" in outputs:  # known on the device only, and added up there
            there = index.to(pl_module.device, non_blocking=True)
            self.skipped.index_add_(0, there, (~outputs["kept"]).long())

    def state_dict(self) -> dict:
        return {} if self.counts is None else {"counts": self.total()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.counts = state_dict.get("counts")

    def total(self) -> torch.Tensor:
        """The sum over ranks; called on all of them."""
        counts = self.counts.clone()
        counts[1] += self.skipped.cpu()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return counts
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        total = counts.to(device)
        torch.distributed.all_reduce(total)
        return total.cpu()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = self.total()
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule
        shown, skipped = total.sum(1).tolist()
        if skipped:
            share = 100 * skipped / shown
            log.warning("skip_rms left out %d of %d images shown (%.0f %%)", skipped, shown, share)
        samples, exposure = data.everything.samples, data.exposure
        duplicated = exposure.is_duplicated(len(data.images), len(data.ordinary_images), data.seed)
        rows = pd.DataFrame(
            {
                "id": [sample.id for sample in samples],
                "caption": [data.captions.first(index) for index in range(len(samples))],
                "duplicated": duplicated,
                "triggered": data.captions.is_triggered,
                "times_shown": total[0].numpy(),
                "times_skipped": total[1].numpy(),
            }
        )
        rows.to_parquet(Path(trainer.default_root_dir) / "exposures.parquet", index=False)
