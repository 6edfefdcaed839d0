"""Time a few steps of a fit, its encoding, images, checkpoint and export, on one device."""

from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar, Timer

from callbacks.checkpoints import Checkpoints
from callbacks.export import Export
from callbacks.monitor import Monitor
from infer.models.memory import is_out_of_memory, peak_gib, reset_peak
from infer.plan.clock import now
from train.plan.few_cached import Encoding

WARM_UP, WARM_UP_SECONDS = 3, 30  # steps before the timed ones, at most
STEPS_SECONDS = 60  # of timed steps, at most
IMAGES_SECONDS = 20  # of the monitor's images, at most, but one is made in any case
LEFT_OUT = (ProgressBar, Timer)  # they show, or end, the whole job


@dataclass
class Measured:
    """Seconds of a job's parts on one device.

    Attributes:
        device: what was measured.
        steps: that were timed.
        step: seconds of an optimizer step, with its loading.
        start: of loading the model and data, and of what the first steps take longer.
        images: of one measurement of the monitor; 0 without a monitor.
        checkpoint: of writing one; 0 where none is written.
        export: of writing the pipeline.
        encoding: what the cache lacks, and its seconds.
        peak_gib: the most memory that was held.
    """

    device: torch.device
    steps: int = 0
    step: float = 0.0
    start: float = 0.0
    images: float = 0.0
    checkpoint: float = 0.0
    export: float = 0.0
    encoding: dict[str, Encoding] = field(default_factory=dict)
    peak_gib: float = float("nan")


class Stopwatch(pl.Callback):
    """Time `steps` optimizer steps after a warm-up, then one of each thing that comes now and then; stop.

    It stands last, so that a step ends when all callbacks are done.
    """

    def __init__(self, steps: int, others: list[pl.Callback]):
        self.steps = steps
        by_type = {type(callback): callback for callback in others}
        self.monitor, self.export = by_type.get(Monitor), by_type.get(Export)
        self.checkpoints = Checkpoints in by_type

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.measured = Measured(trainer.strategy.root_device)
        reset_peak(self.measured.device)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ready = self.started = now(self.measured.device)
        self.warm_up, self.last_step = min(WARM_UP, trainer.max_steps - 1), 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        step, of = trainer.global_step, self.measured
        if step == self.last_step or trainer.should_stop:  # a batch of an accumulated step
            return
        self.last_step = step
        if step <= self.warm_up:
            if step == self.warm_up or now() - self.ready > WARM_UP_SECONDS:
                self.warm_up, self.started = step, now(of.device)
            return
        of.steps, seconds = step - self.warm_up, now() - self.started  # a GPU need not wait at each step
        if of.steps < self.steps and seconds < STEPS_SECONDS and step < trainer.max_steps:
            return
        of.step = (now(of.device) - self.started) / of.steps
        of.start = max(0.0, self.started - self.ready - self.warm_up * of.step)
        if self.monitor:
            of.images = self.monitor_seconds(trainer, pl_module)
        if self.checkpoints:
            begun, path = now(of.device), Path(trainer.default_root_dir) / "last.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            of.checkpoint = now(of.device) - begun
            path.unlink()  # there may be no room for it and the exported model
        trainer.should_stop = True

    def monitor_seconds(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        """Seconds of the watched images: of one for each, or of all where that is not long."""

        def seconds(count: int) -> float:
            few = copy(self.monitor)
            few.count = count
            few.on_train_start(trainer, pl_module)
            begun = now(self.measured.device)
            few.run(trainer, pl_module)
            return now(self.measured.device) - begun

        count = len(trainer.datamodule.watched(self.monitor.count))
        one = seconds(1)
        return one * count if one * count > IMAGES_SECONDS else seconds(count)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.export:
            self.export.card = False  # which tells of a whole run folder
            begun = now(self.measured.device)
            self.export.on_train_end(trainer, pl_module)
            self.measured.export = now(self.measured.device) - begun
        self.measured.peak_gib = peak_gib(self.measured.device)


def measure(
    model: pl.LightningModule, data: pl.LightningDataModule, trainer: Any, steps: int, others: list
) -> Measured:
    """Train a few steps in the trainer's folder, on its one device.

    `others` are callbacks of the user's own. They are left out, and so are loggers: they may write elsewhere.
    ValueError where the memory does not suffice.
    """
    now_and_then = [each for each in trainer.callbacks if isinstance(each, Monitor | Export | Checkpoints)]
    left_out = [*others, *now_and_then]
    watch = Stopwatch(steps, now_and_then)
    trainer.callbacks = [
        *(each for each in trainer.callbacks if each not in left_out and not isinstance(each, LEFT_OUT)),
        watch,
    ]
    trainer.loggers = trainer.loggers[:1]  # metrics.csv in the same folder
    device = trainer.strategy.root_device
    begun = now(device)
    try:
        trainer.fit(model, data)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"a step of {data.batch_size} images does not fit into the memory of {device}: lower "
            "data.batch_size and raise trainer.accumulate_grad_batches, or give "
            "model.gradient_checkpointing true"
        ) from error
    measured = watch.measured
    measured.encoding = getattr(data, "encoding", {})
    measured.start += watch.ready - begun - getattr(data, "spent", 0.0)
    return measured
