"""Write the trained model as a diffusers folder."""

from pathlib import Path

import lightning.pytorch as pl

from callbacks.ema import averaged
from callbacks.model_card import describe
from data.files import write_atomically, write_json


class Export(pl.Callback):
    """Call `pl_module.export(<run>/pipeline)` at the end of fit, with averaged weights if an EMA runs.

    The folder is complete or absent: it is written under another name and then renamed. With `card` it has a
    model card.
    """

    def __init__(self, card: bool = False):
        self.card = card

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with averaged(trainer, pl_module) as kept:
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.save()  # the exported model marks the run as finished: metrics are on disk before
                self.write(trainer, pl_module, kept)
        trainer.strategy.barrier()

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, kept: bool) -> None:
        target = Path(trainer.default_root_dir) / "pipeline"

        def export(part: Path) -> None:
            pl_module.eval()
            pl_module.export(part)
            write_json(part / "training.json", {"steps": trainer.global_step, "ema": kept})
            if self.card:
                describe(target.parent, part)

        write_atomically(target, export)
