"""Lightning's trainer for predict runs: its options, its callbacks, its quiet."""

import logging
import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from data.cli import as_users

# hints of Lightning that do not apply to predicting
NOT_FOR_US = (
    "does not have many workers",  # requests are tuples: there is nothing to load
    "You are using the plain ModelCheckpoint",
    "litlogger|litmodels|Tip:",
    "`isinstance\\(treespec, LeafSpec\\)`",
)


def quiet_lightning() -> None:
    """Silence Lightning's hints, by their messages, and its notes on devices."""
    for message in NOT_FOR_US:
        warnings.filterwarnings("ignore", f".*({message})")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


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
    if options.get("enable_progress_bar") is not False:
        callbacks.append(TQDMProgressBar(refresh_rate=1))
    loggers = options.get("logger") or False
    if logger:
        loggers = [logger, *(loggers if isinstance(loggers, list) else [loggers] if loggers else [])]
    ours = {"default_root_dir": out, "callbacks": callbacks, "logger": loggers}
    with as_users("trainer"):  # PromptData gives each rank its share
        trainer = pl.Trainer(**options | ours | {"use_distributed_sampler": False})
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
