"""The progress of a predict run in the trainer's loggers."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow.parquet as parquet

from callbacks.wandb_run import SafeWandbLogger, flat
from callbacks.writer import SampleWriter
from data.files import read_object, redacted

SHOWN = 32  # images in a run's table


class PredictProgress(pl.Callback):
    """Log a predict run to the trainer's loggers: settings, images done, summary, first images.

    It stands after the SampleWriter, whose files it reads.
    """

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images = 0
        writer = next(callback for callback in trainer.callbacks if isinstance(callback, SampleWriter))
        for logger in trainer.loggers:
            logger.log_hyperparams(flat(redacted(writer.identity)))

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        made = self.images + len(outputs.images) * trainer.world_size
        self.images = min(made, len(trainer.datamodule.missing))
        for logger in trainer.loggers:
            numbers = {"images": self.images, "seconds": outputs.seconds_per_image}
            logger.log_metrics(numbers, step=self.images)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        if not trainer.is_global_zero or not (folder / "samples.parquet").exists():
            return
        count = parquet.read_metadata(folder / "samples.parquet").num_rows
        summary = read_object(folder / "summary.json")
        numbers = {f"summary/{key}": v for key, v in summary.items() if isinstance(v, int | float)}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=count)
            if isinstance(logger, SafeWandbLogger):
                logger.safely(log_first_images, logger, folder, count)


def log_first_images(logger: SafeWandbLogger, folder: Path, count: int) -> None:
    """The first images as a table, which says how many of how many it shows."""
    import wandb

    table = wandb.Table(columns=["prompt", "sample", "image"])
    with parquet.ParquetFile(folder / "samples.parquet") as file:
        first = next(file.iter_batches(SHOWN, columns=["prompt", "sample", "image"])).to_pylist()
    for row in first:
        table.add_data(row["prompt"], row["sample"], wandb.Image(str(folder / row["image"])))
    title = "images" if count <= SHOWN else f"images: the first {SHOWN} of {count}"
    logger.experiment.log({title: table})
