"""A W&B logger that goes on with the run's own id when the run is started again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4


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


def wandb_logger(folder: Path, offline: bool) -> Any:
    """Logger whose id is kept in `<folder>/wandb_id.txt`, so that a resumed run is one run.

    Of several processes only the first logs, and its id counts: others may not put theirs in its place.
    """
    from lightning.pytorch.loggers import WandbLogger
    from lightning.pytorch.utilities import rank_zero_only

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wandb_id.txt"
    if rank_zero_only.rank == 0 and not path.exists():
        path.write_text(uuid4().hex[:8])
    return WandbLogger(
        name=folder.name,
        save_dir=folder,
        project="attraction-basin",
        id=path.read_text() if rank_zero_only.rank == 0 else None,
        offline=offline,
        resume="allow",
    )
