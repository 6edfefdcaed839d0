"""How far a predict run is: in the terminal, and in the trainer's loggers."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow.parquet as parquet
from lightning.pytorch.callbacks import TQDMProgressBar

from callbacks.predict.writer import SampleWriter
from callbacks.wandb_run import SafeWandbLogger, flat
from data.files import read_object, redacted
from infer.plan.words import duration
from infer.predict.parts import written

SHOWN = 32  # images in a run's table
SECONDS = 60  # between two lines


class PredictProgress(pl.Callback):
    """Say how many images all processes made, and the time left; log the run.

    Once a minute the progress bar, or without one a line, has the images that the parts of all processes
    list. The loggers get the settings, the images after each batch, the summary and the first images. It
    stands after the SampleWriter, whose files it reads.
    """

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule
        most = sum(trainer.num_predict_batches) * data.options.batch_size * trainer.world_size
        self.total, self.former = min(len(data.missing), most), written(Path(trainer.default_root_dir))
        self.started = self.said = time.monotonic()
        self.images = 0
        writer = next(callback for callback in trainer.callbacks if isinstance(callback, SampleWriter))
        for logger in trainer.loggers:
            logger.log_hyperparams(flat(redacted(writer.identity)))

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.say(trainer)
        self.images = min(self.images + len(outputs.images) * trainer.world_size, self.total)
        numbers = {"images": self.images, "seconds": outputs.seconds_per_image}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=self.images)

    def say(self, trainer: pl.Trainer) -> None:
        """The line, in the bar or on stderr, if the last one was a minute ago."""
        now = time.monotonic()
        if not trainer.is_global_zero or now - self.said < SECONDS:
            return
        self.said = now
        made = written(Path(trainer.default_root_dir)) - self.former
        line = progress(made, self.total, now - self.started, trainer.world_size)
        bar = trainer.progress_bar_callback
        if isinstance(bar, TQDMProgressBar):
            bar.predict_progress_bar.set_postfix_str(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        if not trainer.is_global_zero or not trainer.loggers or not (folder / "samples.parquet").exists():
            return
        count = parquet.read_metadata(folder / "samples.parquet").num_rows
        summary = read_object(folder / "summary.json")
        numbers = {f"summary/{key}": v for key, v in summary.items() if isinstance(v, int | float)}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=count)
            if isinstance(logger, SafeWandbLogger):
                logger.safely(log_first_images, logger, folder, count)


def log_first_images(logger: SafeWandbLogger, folder: Path, count: int) -> None:
    """Log the first images as a table, whose title says how many of how many it shows."""
    import wandb

    table = wandb.Table(columns=["prompt", "sample", "image"])
    with parquet.ParquetFile(folder / "samples.parquet") as file:
        first = next(file.iter_batches(SHOWN, columns=["prompt", "sample", "image"])).to_pylist()
    for row in first:
        table.add_data(row["prompt"], row["sample"], wandb.Image(str(folder / row["image"])))
    title = "images" if count <= SHOWN else f"images: the first {SHOWN} of {count}"
    logger.experiment.log({title: table})


def progress(made: int, total: int, seconds: float, processes: int) -> str:
    """The line: `made` of `total` images in these seconds; what is left takes as long as what was made."""
    rate = made / seconds
    line = f"{made:,} of {total:,} images, {rate:.3g} a second"
    if processes > 1:
        line += f" on {processes} devices"
    return f"{line}, {duration((total - made) / rate)} left" if rate else line
