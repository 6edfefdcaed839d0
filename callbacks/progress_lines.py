"""How far a predict run is, over all its processes, and how long it will take."""

import sys
import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar

from infer.predict.parts import written


class ProgressLines(pl.Callback):
    """Say the images that all processes made, and the time left: in the bar, or without one in lines.

    It stands after the SampleWriter, whose parts it counts.

    Args:
        every: seconds between two lines.
    """

    def __init__(self, every: float = 60.0):
        self.every = every

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule
        most = sum(trainer.num_predict_batches) * data.options.batch_size * trainer.world_size
        self.total, self.former = min(len(data.missing), most), written(Path(trainer.default_root_dir))
        self.started = self.said = time.monotonic()

    def on_predict_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        now = time.monotonic()
        if not trainer.is_global_zero or now - self.said < self.every:
            return
        self.said = now
        made = written(Path(trainer.default_root_dir)) - self.former
        line = progress(made, self.total, now - self.started, trainer.world_size)
        bar = trainer.progress_bar_callback
        if isinstance(bar, TQDMProgressBar):
            bar.predict_progress_bar.set_postfix_str(line)
        else:
            print(line, file=sys.stderr, flush=True)


def progress(made: int, total: int, seconds: float, processes: int) -> str:
    """The line: `made` of `total` images in these seconds; what is left takes as long as what was made."""
    rate = made / seconds
    line = f"{made:,} of {total:,} images, {rate:.3g} a second"
    if processes > 1:
        line += f" on {processes} devices"
    return f"{line}, {duration((total - made) / rate)} left" if rate else line


def duration(seconds: float) -> str:
    """Days, hours and minutes, the two largest of them."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    units = {"d": minutes // 1440, "h": minutes // 60 % 24, "min": minutes % 60}
    said = [f"{count} {unit}" for unit, count in units.items() if count]
    return " ".join(said[:2])
