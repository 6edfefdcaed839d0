"""A W&B logger that goes on with the run's own id when the run is started again."""

from pathlib import Path
from uuid import uuid4

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only


def wandb_logger(folder: Path, offline: bool) -> WandbLogger:
    """Logger whose id is kept in `<folder>/wandb_id.txt`, so that a resumed run is one run.

    Of several processes only the first logs, and its id counts: others may not put theirs in its place.
    """
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
