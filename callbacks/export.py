"""Write the trained model as a diffusers folder."""

from pathlib import Path

import lightning.pytorch as pl

from callbacks.ema import averaged
from callbacks.model_card import describe
from data.files import write_atomically, write_json


class Export(pl.Callback):
    """At the end of fit, `pl_module.export(<run>/pipeline)`, with averaged weights if an EMA runs.

    The folder is complete or absent: it is written beside its place and moved there.
    """

    def __init__(self, folder: str = "pipeline", card: bool = False):
        self.folder, self.card = folder, card

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with averaged(trainer, pl_module) as kept:
            if trainer.is_global_zero:
                self.write(trainer, pl_module, kept)
        trainer.strategy.barrier()

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, kept: bool) -> None:
        target = Path(trainer.default_root_dir) / self.folder

        def export(part: Path) -> None:
            pl_module.eval()
            pl_module.export(part)
            write_json(part / "training.json", {"steps": trainer.global_step, "ema": kept})
            if self.card:
                describe(target.parent, part)

        write_atomically(target, export)
