"""Write images, rows and traces as the batches finish; a rerun makes only what is missing."""

import logging
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from callbacks.mitigations.presets import label
from callbacks.predict.rows import sample_row, trace_rows
from callbacks.provenance import git_commit
from data.cli import without_traceback
from infer.denoising.hooks import overrides
from infer.predict.claim import claim
from infer.predict.lock import FolderLock
from infer.predict.merge import merge
from infer.predict.module import Generated
from infer.predict.parts import wait_for, write_part, written
from infer.predict.run_folder import FileStems, save_image
from infer.predict.summary import write_summary

log = logging.getLogger(__name__)


class SampleWriter(BasePredictionWriter):
    """Fill the trainer's `default_root_dir` as a predict run folder.

    Args:
        mitigation: label for the `mitigation` column; null: that of the trainer's mitigations.
    """

    def __init__(self, mitigation: str | None = None):
        super().__init__(write_interval="batch")
        self.mitigation, self.stopped = mitigation, False
        self.lock: FolderLock | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        rules = pl_module.rules
        self.mitigation = self.mitigation or label(rules)
        self.stems = FileStems(trainer.datamodule.requests.ids())
        contents = [rule.contents() for rule in rules]
        self.identity = {
            "mitigation": self.mitigation,
            "mitigations": [rule.identity() for rule in rules],
            **({"mitigations_sha256": contents} if any(contents) else {}),
            **({"guard": pl_module.guard.identity()} if pl_module.guard else {}),
            **pl_module.model.identity(),
            **trainer.datamodule.identity(),
        }
        self.take_lock(trainer)
        folder = Path(trainer.default_root_dir)
        claim(folder, self.identity)  # on every rank: all refuse, or write the same
        self.former, self.made = written(folder), 0
        trainer.strategy.barrier()

    def take_lock(self, trainer: pl.Trainer) -> None:
        """Lock the folder for all processes of the run.

        ValueError in all where another run has it, or where it cannot be written.
        """
        error = None
        if trainer.is_global_zero:
            try:
                self.lock = FolderLock(Path(trainer.default_root_dir))
            except (ValueError, OSError) as refused:
                error = without_traceback(refused)
        if error := trainer.strategy.broadcast(error):
            raise ValueError(error)

    def unlock(self) -> None:
        if self.lock:
            self.lock.release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: Exception) -> None:
        self.unlock()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM over from Lightning, whose handler hangs in a process that gets the signal twice."""
        self.stopped = trainer.received_sigterm
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, partial(self.stop, trainer))

    def stop(self, trainer: pl.Trainer, number: int, _: Any) -> None:
        """Note the signal, and pass it on to the processes that this one started."""
        if not self.stopped and trainer.strategy.launcher:
            trainer.strategy.launcher.kill(number)
        self.stopped = True

    def leave_if_stopped(self, trainer: pl.Trainer) -> None:
        """Leave, with the exit code of a SIGTERM and the other processes, if one of them was stopped.

        Lightning kills a process at once when one that it started ends with another code than 0.
        """
        if trainer.strategy.reduce_boolean_decision(self.stopped, all=False):
            if trainer.is_global_zero:
                log.warning("stopped by SIGTERM: the same command makes the images that are missing")
            raise SystemExit(128 + signal.SIGTERM if trainer.local_rank == 0 else 0)

    def on_predict_batch_end(self, trainer: pl.Trainer, *args: Any, **options: Any) -> None:
        """Write the batch; after a SIGTERM, leave."""
        super().on_predict_batch_end(trainer, *args, **options)
        if self.stopped:
            self.leave_if_stopped(trainer)

    def write_on_batch_end(self, trainer: pl.Trainer, pl_module: Any, prediction: Generated, *_: Any) -> None:
        folder, rows, traces = Path(trainer.default_root_dir), [], []
        guidance_scale = pl_module.model.guidance_scale
        for number, (request, image) in enumerate(zip(prediction.requests, prediction.images, strict=True)):
            path = f"images/{self.stems[request.prompt_id]}-{request.sample}.png"
            save_image(image, folder / path)
            rows.append(sample_row(prediction, number, self.mitigation, guidance_scale, path))
            traces.append(trace_rows(prediction, number))
            warn_of_image(prediction, number)
        write_part(folder, rows, pd.concat(traces, ignore_index=True))
        self.made += len(rows)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the parts together; also those of a run that was killed just before this."""
        self.leave_if_stopped(trainer)
        made = torch.tensor(self.made, device=trainer.strategy.root_device)
        made = int(trainer.strategy.reduce(made, reduce_op="sum"))  # a barrier, too
        if trainer.is_global_zero:
            folder, rules = Path(trainer.default_root_dir), pl_module.rules
            wait_for(folder, self.former + made)  # or the parts that a network disk shows later would be lost
            if merge(folder, trainer.datamodule.requests):
                has_transition = any(overrides(rule, "transition_timestep") for rule in rules)
                has_alternative = any(rule.alternatives is not None for rule in rules)
                write_summary(folder, has_transition, has_alternative, git_commit())
            self.unlock()
        trainer.strategy.barrier()


def warn_of_image(batch: Generated, number: int) -> None:
    """One line each for an image that was refused, and for one that failed."""
    request, denoised, guarded = batch.requests[number], batch.denoised, batch.guarded
    if guarded and guarded.refused[number]:
        log.warning(
            "%s, sample %d: refused after %d attempts, a grey image: similarity %.2f to training image %r",
            request.prompt_id, request.sample, guarded.attempts[number], guarded.similarity[number],
            guarded.nearest[number],
        )  # fmt: skip
    if (failed_at := denoised.failed_at[number].item()) >= 0:
        log.warning(
            "%s, sample %d: latents or pixels are not finite after step %d (t = %g): a black image",
            request.prompt_id, request.sample, failed_at, denoised.timesteps[number, failed_at],
        )  # fmt: skip
