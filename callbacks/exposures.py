"""Count how often each image was really shown."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch


class Exposures(pl.Callback):
    """`exposures.parquet` at the end of fit: id, caption, duplicated, times_shown.

    The counts are exact on several ranks and after resumes.
    """

    def __init__(self) -> None:
        self.counts: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        size = len(trainer.datamodule.everything)
        if (
            self.counts is None or trainer.global_rank
        ):  # a checkpoint holds the sum over ranks: one rank takes it up
            self.counts = torch.zeros(size, dtype=torch.long)
        if len(self.counts) != size:
            raise ValueError(
                f"the checkpoint counted {len(self.counts)} images, the data now has {size}: not the same run"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, *_
    ) -> None:
        self.counts += torch.bincount(batch["index"].cpu(), minlength=len(self.counts))

    def state_dict(self) -> dict:
        return {"counts": self.total()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.counts = state_dict["counts"]

    def total(self) -> torch.Tensor:
        """The sum over ranks; called on all of them."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.counts
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        total = self.counts.clone().to(device)
        torch.distributed.all_reduce(total)
        return total.cpu()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = self.total()
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule
        duplicated = np.zeros(len(total), dtype=bool)
        exposure = data.exposure
        if exposure.copies > 1 or exposure.weight != 1:
            duplicated[exposure.duplicated(len(data.images), data.seed)] = True
        rows = pd.DataFrame(
            {
                "id": [sample.id for sample in data.everything.samples],
                "caption": [sample.caption for sample in data.everything.samples],
                "duplicated": duplicated,
                "times_shown": total.numpy(),
            }
        )
        rows.to_parquet(Path(trainer.default_root_dir) / "exposures.parquet", index=False)
