"""A training run's folder: whose it is, whether it is finished, where it goes on."""

import json
from pathlib import Path

import pandas as pd
import yaml
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer

from data.files import redacted, remove_temporary_files, write_atomically

# Settings that may change between two starts of the same run. `out` and the cache: it may have been moved.
FREE = (
    "trainer", "wandb", "checkpoint_every", "grid", "loss_bins", "config", "seed_everything", "out", "hub",
    "data.cache", "data.workers",
)  # fmt: skip


def claim(folder: Path, config: str) -> None:
    """Make the folder this run's own; ValueError naming the differences if another run got on in it."""
    path, config = folder / "config.yaml", redacted(config)
    if path.exists() and (last_checkpoint(folder) or (folder / "pipeline").exists()):
        before, now = flat(yaml.safe_load(path.read_text())), flat(yaml.safe_load(config))
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        changed = [key for key in changed if key in before or now[key]]  # not an option that is new, and off
        if changed:
            listed = "; ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed)
            raise ValueError(f"{folder} holds a different run ({listed}): choose another --out, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(folder)
    write_atomically(path, lambda part: part.write_text(config))


def flat(config: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings as dotted names, without those that may change; trainer.max_steps may not."""
    out: dict[str, object] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in FREE:
            if name == "trainer":
                out["trainer.max_steps"] = value.get("max_steps")
            continue
        if isinstance(value, dict):
            out |= flat(value, f"{name}.")
        else:
            out[name] = value
    return out


def finished(folder: Path, max_steps: int) -> bool:
    """Whether the run has exported its model after its last step."""
    path = folder / "pipeline" / "training.json"
    return path.exists() and json.loads(path.read_text())["steps"] >= max_steps


def check_slurm(trainer: Trainer) -> None:
    """ValueError where SLURM's tasks are not the devices asked for: some would be left out without a word."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(environment, SLURMEnvironment):
        return
    tasks, devices = environment.world_size(), trainer.num_devices * trainer.num_nodes
    if tasks != devices:
        raise ValueError(
            f"SLURM started {tasks} tasks, and {devices} devices are asked for: start one task a device "
            "(srun --ntasks-per-node), or name an interactive job so (salloc --job-name interactive)"
        )


def memorized(folder: Path, stop_at_share: float | None, threshold: float) -> bool:
    """Whether the run has exported its model when enough was memorized, as `grid.stop_at_share` asks."""
    path, about = folder / "samples" / "similarity.parquet", folder / "pipeline" / "training.json"
    if stop_at_share is None or not path.exists() or not about.exists():
        return False
    rows = pd.read_parquet(path)
    rows = rows[rows["step"] == json.loads(about.read_text())["steps"]]
    return bool(len(rows)) and bool((rows["similarity"] > threshold).mean() >= stop_at_share)


def last_checkpoint(folder: Path) -> str | None:
    path = folder / "checkpoints" / "last.ckpt"
    return str(path) if path.exists() else None


def keep_metrics(folder: Path) -> None:
    """Set `metrics.csv` of the interrupted start aside: Lightning's CSV logger would delete it."""
    path = folder / "metrics.csv"
    if not path.exists():
        return
    aside = folder / "metrics-before.csv"
    tables = [pd.read_csv(part) for part in (aside, path) if part.exists()]
    pd.concat(tables).to_csv(aside, index=False)
    path.unlink()


def join_metrics(folder: Path) -> None:
    """One row per step of `metrics.csv`, all starts in one; of two values the later start's counts."""
    aside, path = folder / "metrics-before.csv", folder / "metrics.csv"
    parts = [pd.read_csv(part) for part in (aside, path) if part.exists()]
    if not parts or not aside.exists() and parts[0]["step"].is_unique:
        return
    rows = pd.concat(parts).groupby("step", as_index=False).last()
    rows[sorted(rows.columns)].to_csv(path, index=False)
    aside.unlink(missing_ok=True)
