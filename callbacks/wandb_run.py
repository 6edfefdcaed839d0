"""Weights & Biases: one logger for fit, predict and compare, whose trouble never ends a run."""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import lightning.pytorch as pl
import pandas as pd
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.provenance import git_commit
from callbacks.writer import SampleWriter
from data.files import one_line

log = logging.getLogger(__name__)
START = 60  # seconds that a server may take to answer
SHOWN = 32  # images in a run's table


@dataclass(kw_only=True)
class WandbOptions:
    """Weights & Biases.

    Args:
        wandb: log to W&B too; offline: into the run folder only, for `wandb sync`.
        wandb_project: project; null: that of WANDB_PROJECT, or attraction-basin.
        wandb_entity: user or team; null: that of WANDB_ENTITY, or the account's own.
        wandb_group: group of runs; null: that of WANDB_RUN_GROUP.
        wandb_tags: tags; none: those of WANDB_TAGS.
    """

    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str | None = None
    wandb_entity: str | None = None
    wandb_group: str | None = None
    wandb_tags: list[str] = field(default_factory=list)

    def logger(self, folder: Path, config: dict[str, Any]) -> "SafeWandbLogger | None":
        """The logger of a run folder; None where W&B is off or cannot start."""
        chosen = (self.wandb_project, self.wandb_entity, self.wandb_group, self.wandb_tags)
        return wandb_logger(folder, self.wandb, *chosen, config=config)


def wandb_logger(
    folder: Path,
    mode: str,
    project: str | None = None,
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    config: dict[str, Any] | None = None,
) -> "SafeWandbLogger | None":
    """A started logger of the run folder; None where W&B is off or cannot start, which a warning says.

    The run's id is kept in `<folder>/wandb_id.txt`: started again, it is the same run. A server that does not
    answer within 60 s, or a missing key, makes the run an offline one. Of several processes the first logs.

    Args:
        folder: run folder; its name is the run's.
        mode: off, offline or online.
        project: null: WANDB_PROJECT, or attraction-basin.
        entity: null: WANDB_ENTITY.
        group: null: WANDB_RUN_GROUP.
        tags: none: WANDB_TAGS.
        config: nested settings, logged under dotted names, with the git commit.
    """
    if mode == "off":
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path, first = folder / "wandb_id.txt", rank_zero_only.rank == 0
    if first and not path.exists():
        path.write_text(uuid4().hex[:8])
    import wandb

    for offline in (False, True) if mode == "online" else (True,):
        options = {
            "project": project or os.environ.get("WANDB_PROJECT", "attraction-basin"),
            "entity": entity, "group": group, "tags": list(tags) or None,
            "config": flat(config or {}) | {"git_commit": git_commit()},
        }  # fmt: skip
        settings = wandb.Settings(init_timeout=START, quiet=True, mode="offline" if offline else "online")
        logger = SafeWandbLogger(
            name=folder.name, save_dir=folder, id=path.read_text() if first else None, offline=offline,
            resume="allow", settings=settings, **options,
        )  # fmt: skip
        logger._wandb_init.pop("anonymous", None)  # W&B warns of it, whatever it is
        if not first:
            return logger
        try:
            logger.experiment  # noqa: B018  (starts the run)
            return logger
        except Exception as error:  # W&B raises many kinds: none of them is worth a run
            then = "tracking is off" if offline else f"logging offline, for `{sync_command(folder)}` later"
            log.warning("W&B cannot start (%s): %s", one_line(error), then)
            with suppress(Exception):
                wandb.teardown()  # the failed start would keep the run's id
    return None


def sync_command(folder: Path) -> str:
    """What sends all offline parts of a run folder to W&B."""
    return f"wandb sync {folder}/wandb/offline-run-*"


def flat(settings: dict[str, Any], within: str = "") -> dict[str, Any]:
    """Nested settings under dotted names; lists stay lists."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= flat(value, f"{within}{key}.") if isinstance(value, dict) else {f"{within}{key}": value}
    return out


class SafeWandbLogger(WandbLogger):
    """A W&B logger that is switched off by its first error, such as a full disk: the run goes on."""

    broken = False

    def safely(self, action: Any, *args: Any, **options: Any) -> None:
        """Run `action` unless an earlier one failed; the first error is logged."""
        if self.broken:
            return
        try:
            action(*args, **options)
        except Exception as error:
            self.broken = True
            what = sync_command(Path(self.save_dir))
            log.warning("W&B tracking is off (%s); to send what was logged: %s", one_line(error), what)

    def log_metrics(self, *args: Any, **options: Any) -> None:
        self.safely(super().log_metrics, *args, **options)

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        self.safely(super().log_hyperparams, *args, **options)

    def log_image(self, *args: Any, **options: Any) -> None:
        self.safely(super().log_image, *args, **options)

    def log_table(self, *args: Any, **options: Any) -> None:
        self.safely(super().log_table, *args, **options)

    def finalize(self, status: str) -> None:
        self.safely(super().finalize, status)

    def close(self) -> None:
        """End the run and W&B's helper process; a hint says how to sync an offline run."""
        import wandb

        self.safely(self.experiment.finish)
        with suppress(Exception):  # else it is tried at exit, and a helper that is gone gives a traceback
            wandb.teardown()
        if self._offline and not self.broken:
            log.warning("W&B logged offline: %s", sync_command(Path(self.save_dir)))


class PredictProgress(pl.Callback):
    """Log a predict run to the trainer's loggers: settings, images done, summary, first images.

    It stands after the SampleWriter, whose files it reads.
    """

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images = 0
        writer = next(callback for callback in trainer.callbacks if isinstance(callback, SampleWriter))
        for logger in trainer.loggers:
            logger.log_hyperparams(flat(writer.identity))

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.images += len(outputs.images) * trainer.world_size
        for logger in trainer.loggers:
            logger.log_metrics(
                {"images": self.images, "seconds": outputs.seconds_per_image}, step=self.images
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        if not trainer.is_global_zero or not (folder / "samples.parquet").exists():
            return
        rows = pd.read_parquet(folder / "samples.parquet")
        summary = pd.read_json(folder / "summary.json", typ="series").dropna()
        numbers = {
            f"summary/{key}": value for key, value in summary.items() if isinstance(value, int | float)
        }
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=len(rows))
            if isinstance(logger, SafeWandbLogger):
                logger.safely(log_first_images, logger, folder, rows)


def log_first_images(logger: WandbLogger, folder: Path, rows: pd.DataFrame) -> None:
    """The first images as a table, which says how many of how many it shows."""
    import wandb

    table = wandb.Table(columns=["prompt", "sample", "image"])
    for row in rows.head(SHOWN).itertuples():
        table.add_data(row.prompt, row.sample, wandb.Image(str(folder / row.image)))
    title = "images" if len(rows) <= SHOWN else f"images: the first {SHOWN} of {len(rows)}"
    logger.experiment.log({title: table})
