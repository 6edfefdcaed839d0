"""Weights & Biases: one logger for fit, predict and compare, whose trouble never ends a run."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.provenance import git_commit
from data.files import one_line, redacted

log = logging.getLogger(__name__)
START = 40  # seconds that a server may take to answer; until W&B has given up, 60 may pass


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

    def logger(self, folder: Path, config: dict[str, Any] | None = None) -> "SafeWandbLogger | None":
        """The started logger of a run folder; None where W&B is off or cannot start, which a warning says.

        The run's id is kept in `<folder>/wandb_id.txt`: started again, it is the same run. A server that does
        not answer within 40 s, or a missing key, makes the run an offline one. Of several processes the first
        logs.

        Args:
            folder: run folder; its name is the run's.
            config: nested settings, logged under dotted names and without secrets, with the git commit.
        """
        if self.wandb == "off":
            return None
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        path, first = folder / "wandb_id.txt", rank_zero_only.rank == 0
        if first and not path.exists():
            path.write_text(uuid4().hex[:8])
        for mode in ("online", "offline") if self.wandb == "online" else ("offline",):
            logger = SafeWandbLogger(
                name=folder.name, save_dir=folder, id=path.read_text() if first else None,
                offline=mode == "offline", resume="allow",
                project=self.wandb_project or os.environ.get("WANDB_PROJECT", "attraction-basin"),
                entity=self.wandb_entity, group=self.wandb_group, tags=self.wandb_tags or None,
                config=flat(redacted(config or {})) | {"git_commit": git_commit()},
                # silent would also hide the question for a key
                settings=wandb.Settings(init_timeout=START, quiet=True, silent=mode == "offline", mode=mode),
            )  # fmt: skip
            logger._wandb_init.pop("anonymous", None)  # W&B warns of it, whatever it is
            if not first:
                return logger
            try:
                with arguments_without_secrets():
                    logger.experiment  # noqa: B018  (starts the run)
                return logger
            except Exception as error:  # W&B raises many kinds: none of them is worth a run
                later = f"logging offline, for `{sync_command(folder)}` later"
                then = later if mode == "online" else "tracking is off"
                log.warning("W&B cannot start (%s): %s", one_line(error), then)
                with suppress(Exception):
                    wandb.teardown()  # the failed start would keep the run's id
        return None


@contextmanager
def arguments_without_secrets() -> Iterator[None]:
    """Hide passwords and queries of URLs in `sys.argv`, which W&B records when a run starts.

    Lightning starts other processes with it later.
    """
    arguments = sys.argv
    sys.argv = redacted(arguments)
    try:
        yield
    finally:
        sys.argv = arguments


def sync_command(folder: Path) -> str:
    """What sends all offline parts of a run folder to W&B."""
    return f"wandb sync {folder}/wandb/offline-run-*"


def flat(settings: dict[str, Any], within: str = "") -> dict[str, Any]:
    """Nested settings under dotted names; lists stay lists, and the parser's numbers are numbers.

    Lightning's logger makes strings of subclasses of int and float, such as PositiveInt.
    """
    out: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = int(value) if isinstance(value, int) else float(value)
        out |= flat(value, f"{within}{key}.") if isinstance(value, dict) else {f"{within}{key}": value}
    return out


class SafeWandbLogger(WandbLogger):
    """A W&B logger that is switched off by its first error, such as a full disk; the run continues."""

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

    def log_hyperparams(self, params: Any, *args: Any, **options: Any) -> None:
        self.safely(super().log_hyperparams, redacted(params), *args, **options)

    def log_image(self, *args: Any, **options: Any) -> None:
        self.safely(super().log_image, *args, **options)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """End the run and W&B's helper process; a hint says how to sync an offline run."""
        import wandb

        self.safely(lambda: self.experiment.finish())
        with suppress(Exception):  # at exit, a helper process that was killed would give a traceback
            wandb.teardown()
        if self._offline and not self.broken:
            log.warning("W&B logged offline: %s", sync_command(Path(self.save_dir)))
