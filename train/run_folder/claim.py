"""A training run's folder: which run it belongs to, and whether that is finished."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from callbacks.monitor import memorized_share
from callbacks.wandb_run import flat
from data.files import read_object, redacted, remove_temporary_files, write_atomically
from infer.models.pipeline import check_pipeline
from infer.predict.lock import FolderLock

# Settings that may change between two starts of the same run; `out` and the cache because they may be moved.
FREE = re.compile(
    r"(trainer|monitor|loss_bins|hub)\..*|checkpoint_every|config|seed_everything|out|data\.(cache|workers)|wandb.*"
)


@contextmanager
def claim(folder: Path, config: str) -> Iterator[None]:
    """Write `config.yaml`, and keep other processes out of the folder during the block.

    Raises ValueError if another process trains there or another run started there.
    """
    lock = FolderLock(folder)
    try:
        remove_temporary_files(folder)
        path, config = folder / "config.yaml", redacted(config)
        if path.exists() and (last_checkpoint(folder) or (folder / "pipeline").exists()):
            check_same_run(folder, read_settings(path), settings(config))
        write_atomically(path, lambda part: part.write_text(config))
        yield
    finally:
        lock.release()


def check_same_run(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError that names the differences; a run of constant learning rate may be made longer."""
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if key in before or now[key]]  # not an option that is new, and off
    steps, hint = "trainer.max_steps", ""
    if steps in changed and now[steps] > before[steps]:
        if now.get("model.decay") == "constant":
            changed.remove(steps)
        else:
            hint = "; a cosine decay cannot be made longer"
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed)
        raise ValueError(
            f"{folder} holds a different run ({listed}{hint}): choose another --out, or delete it"
        )


def read_settings(path: Path) -> dict[str, Any]:
    """`settings` of a file; ValueError for one that holds none."""
    try:
        return settings(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} holds no settings: restore it, or delete it if the run is the one that it began as"
        ) from error


def settings(config: str) -> dict[str, Any]:
    """The dotted names of a YAML file and their values, without those in FREE but with trainer.max_steps."""
    rows = flat(yaml.safe_load(config))
    kept = {name: value for name, value in rows.items() if not FREE.fullmatch(name)}
    return kept | {"trainer.max_steps": rows.get("trainer.max_steps")}


def exported_steps(folder: Path, denoiser: bool) -> int | None:
    """Optimizer steps of the exported model; None if it is missing or not whole.

    A denoiser's is a pipeline with all its parts, and has `exposures.parquet` beside it.
    """
    exported = folder / "pipeline"
    steps = read_object(exported / "training.json").get("steps")
    if steps is None or not denoiser:
        return steps
    try:
        check_pipeline(str(exported))
        whole = (folder / "exposures.parquet").read_bytes().endswith(b"PAR1")
    except (OSError, ValueError):
        return None
    return steps if whole else None


def memorized(folder: Path, monitor: Any, step: int) -> bool:
    """Whether enough is memorized after that step for `stop_at_share` of a callbacks.monitor.Monitor."""
    path = folder / "samples" / "similarity.parquet"
    if monitor is None or monitor.stop_at_share is None or not path.exists():
        return False
    rows = pd.read_parquet(path)
    rows = rows[(rows["step"] == step) & (rows["measure"] == monitor.measure)]
    return bool(len(rows)) and memorized_share(rows, monitor.threshold) >= monitor.stop_at_share


def last_checkpoint(folder: Path) -> Path | None:
    path = folder / "checkpoints" / "last.ckpt"
    return path if path.exists() else None
