"""A W&B logger that goes on with the run's own id when the run is started again."""

from pathlib import Path
from uuid import uuid4

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(folder: Path, offline: bool) -> WandbLogger:
    """Logger whose id is kept in `<folder>/wandb_id.txt`, so that a resumed run is one run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wandb_id.txt"
    if not path.exists():
        path.write_text(uuid4().hex[:8])
    return WandbLogger(
        name=folder.name,
        save_dir=folder,
        project="attraction-basin",
        id=path.read_text(),
        offline=offline,
        resume="allow",
    )
