"""Lightning's trainer for predict runs: its options, its callbacks, its quiet."""

import logging
import re
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from data.cli import as_users

WARNINGS = (  # of Lightning, which no user of these commands can act on
    ".* does not have many workers",
    "The number of training batches",
    "Total length of `DataLoader` across ranks is zero",
    "You're resuming from a checkpoint that ended before the epoch ended",
    "Checkpoint directory .* exists and is not empty",
    "Experiment logs directory .* exists and is not empty",
    "Found .* module\\(s\\) in eval mode at the start of training",
    "You are using the plain ModelCheckpoint",
    "You defined a `validation_step` but have no `val_dataloader`",
    "You passed in a `val_dataloader` but have no `validation_step`",
    "Trying to infer the `batch_size` from an ambiguous collection",
    "Couldn't infer the batch indices fetched from your dataloader",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


def quiet_lightning() -> None:
    """Silence Lightning's warnings and tips, each by its text."""
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=rf"\W*{text}")
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: not re.search("Tip:|TPU available: False", record.getMessage()))


def trainer_for(
    out: str, callbacks: list[pl.Callback], options: dict[str, Any], logger: Logger | None = None
) -> pl.Trainer:
    """A trainer that predicts into the run folder `out`.

    Args:
        out: run folder.
        callbacks: ours; those in `options` come before them.
        options: of Lightning's Trainer.
        logger: beside those in `options`.

    Raises ValueError for options that the Trainer refuses, and for SLURM tasks that are not the devices.
    """
    callbacks = [*(options.get("callbacks") or []), *callbacks]
    if options.get("enable_progress_bar") is None and not sys.stdout.isatty():
        options = options | {"enable_progress_bar": False}  # a log is no place for a bar
    if options.get("enable_progress_bar") is not False:
        callbacks.append(TQDMProgressBar(refresh_rate=1))
    loggers = options.get("logger") or False
    if logger:
        loggers = [logger, *(loggers if isinstance(loggers, list) else [loggers] if loggers else [])]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its notes on devices, for each run
    ours = {"default_root_dir": out, "callbacks": callbacks, "logger": loggers}
    ours["inference_mode"] = False  # a rule may differentiate the model
    ours["use_distributed_sampler"] = False  # PromptData gives each rank its share
    with as_users("trainer"):
        trainer = pl.Trainer(**options | ours)
    check_slurm(trainer)
    return trainer


def check_slurm(trainer: pl.Trainer) -> None:
    """ValueError where SLURM started another number of tasks than there are devices."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    devices = trainer.num_devices * trainer.num_nodes
    if isinstance(environment, SLURMEnvironment) and (tasks := environment.world_size()) != devices:
        raise ValueError(
            f"SLURM started {tasks} tasks for {devices} devices: start one task a device "
            "(srun --ntasks-per-node), or name an interactive job so (salloc --job-name interactive)"
        )
