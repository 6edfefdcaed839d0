"""The versions, commit, model and data of a run."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import lightning.pytorch as pl

from data.files import write_json
from infer.models.pipeline import resolved_revision

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "datasets", "webdataset")


def git_commit() -> str | None:
    """The commit of the checkout this file is in, with a mark if files changed; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class Provenance(pl.Callback):
    """Write `provenance.json` when a fit starts; W&B gets the same."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        about = {
            "pipeline": pl_module.pipeline,
            "revision": pl_module.revision,
            "resolved_revision": resolved_revision(pl_module.pipeline, pl_module.revision),
            **trainer.datamodule.about(),
            "commit": git_commit(),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "devices": trainer.world_size,
            "precision": str(trainer.precision),
        }
        write_json(Path(trainer.default_root_dir) / "provenance.json", about)
        for logger in trainer.loggers:
            if isinstance(logger, pl.loggers.WandbLogger):
                logger.log_hyperparams(about)
