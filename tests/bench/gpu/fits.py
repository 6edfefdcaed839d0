"""Short fits, as `python -m train fit` makes them, that note their losses, batches and speed."""

import gc
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from callbacks.export import Export
from data.files import bytes_of, digest
from infer.models.memory import peak_gib, reset_peak
from infer.plan.clock import now
from tests.bench.gpu.setting import SIDE, Setting
from tests.bench.training import SHARD
from train.cli import build
from train.run_folder.claim import claim

SEEN = 2  # steps whose batches and losses are compared


@dataclass(frozen=True)
class Fit:
    """What a fit did.

    Attributes:
        losses: of the first steps.
        batches: a digest of each of their batches, as they were on the device.
        step_seconds: of a step, the mean of those after the warm ones; NaN without any.
        peak_gib: of memory.
    """

    losses: list[float]
    batches: list[str]
    step_seconds: float
    peak_gib: float


class Watch(pl.Callback):
    """Notes what happens, and stops the fit once its timed steps have taken `seconds`."""

    def __init__(self, warm: int, seconds: float):
        self.warm, self.seconds = warm, seconds
        self.losses, self.batches, self.step_seconds = [], [], float("nan")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: dict, index: int) -> None:
        if index < SEEN:
            tensors = {name: value for name, value in sorted(batch.items()) if torch.is_tensor(value)}
            self.batches.append(digest(*(digest(name, bytes_of(value.cpu()))
                                         for name, value in tensors.items())))  # fmt: skip

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: dict, *_: Any) -> None:
        step, device = trainer.global_step, pl_module.device
        if step <= SEEN:
            self.losses.append(outputs["loss"].detach())  # read at the end: reading waits for the device
        if step == self.warm:
            self.started = now(device)
        elif step > self.warm:
            late = time.perf_counter() - self.started > self.seconds
            if late or step == trainer.max_steps:
                self.step_seconds = (now(device) - self.started) / (step - self.warm)
                trainer.should_stop = True


def fit(
    setting: Setting, name: str, steps: int, seconds: float = 60, pin: bool | None = None, **more: Any
) -> Fit:
    """Train the model for the warm steps and at most `steps` more; `more` are options, `__` for a dot.

    pin: whether batches are pinned in memory; None: as the project does.
    """
    options = {
        "out": setting.folder / name,
        "model.pipeline": setting.model,
        "data.sources": json.dumps([SHARD]),
        "data.limit": 4 * setting.batch_size,
        "data.resolution": "null" if setting.tiny else SIDE,
        "data.batch_size": setting.batch_size,
        "data.cache": setting.folder / "cache",
        "ema.decay": 0,
        "monitor.count": 1,
        "monitor.num_inference_steps": 1,
        "trainer.max_steps": setting.warm + steps,
        "trainer.precision": "bf16-mixed",
        "trainer.accelerator": "gpu" if setting.device == "cuda" else "cpu",
        "trainer.devices": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_checkpointing": "false",
    } | {key.replace("__", "."): value for key, value in more.items()}
    device, watch = torch.device(setting.device), Watch(setting.warm, seconds)
    reset_peak(device)
    with one_process(), pinned(pin):
        cli = build("fit", [f"--{key}={value}" for key, value in options.items()])
        callbacks = [each for each in cli.trainer.callbacks if not isinstance(each, Export)]
        cli.trainer.callbacks = [*callbacks, watch]
        with claim(cli.folder, cli.parser.dump(cli.config, skip_none=False)):
            cli.trainer.fit(cli.model, cli.datamodule)
    fitted = Fit(torch.stack(watch.losses).tolist(), watch.batches, watch.step_seconds, peak_gib(device))
    del cli, callbacks
    free()
    return fitted


@contextmanager
def one_process() -> Iterator[None]:
    """What a strategy sets up for its processes is gone afterwards."""
    with patch.dict(os.environ):
        try:
            yield
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


@contextmanager
def pinned(pin: bool | None) -> Iterator[None]:
    def loader(*args: Any, **options: Any) -> DataLoader:
        return DataLoader(*args, **options | ({} if pin is None else {"pin_memory": pin}))

    with patch("train.dataset.planned.DataLoader", loader):
        yield


def free() -> None:
    """Give the device's memory back: the next part begins with all of it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
