"""What made this run: versions, commit, data."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import lightning.pytorch as pl

from data.files import write_json

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "datasets", "webdataset")


def git_commit() -> str | None:
    """Of the checkout this file is in; None outside one. A dirty tree is marked."""
    here = Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class Provenance(pl.Callback):
    """Write `provenance.json` when a fit starts."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        about = {
            "pipeline": pl_module.source,
            "revision": pl_module.revision,
            **trainer.datamodule.about(),
            "commit": git_commit(),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "devices": trainer.world_size,
            "precision": str(trainer.precision),
        }
        write_json(Path(trainer.default_root_dir) / "provenance.json", about)
