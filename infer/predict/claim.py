"""Whose a predict run folder is: `config.yaml` says what its images were made with."""

import os
from pathlib import Path
from typing import Any

import yaml

from data.files import redacted, remove, write_atomically
from infer.predict.parts import holds_images


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder this run's own (`config.yaml`).

    ValueError if it is no predict run, or holds images of one with other settings, which the error names.
    """
    path, identity = folder / "config.yaml", redacted(identity)
    if path.exists():
        before = read_config(folder)
        changed = differences(before, identity)
        if changed and holds_images(folder):
            raise ValueError(
                f"{folder} holds a different run ({'; '.join(changed)}): choose another folder, or delete it"
            )
        if changed:  # no image was written
            remove(folder / "parts")
            remove(folder / "samples.parquet")
            remove(folder / "traces.parquet")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_text(yaml.safe_dump(identity, sort_keys=False)))


def read_config(folder: Path) -> dict[str, Any]:
    """What the run holds, as `claim` wrote it; ValueError where it is no predict run."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError):  # such as another program's objects
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("mitigations"), list):
        raise ValueError(f"{folder} holds something else than a predict run: choose another folder")
    return config


def differences(before: Any, after: Any, name: str = "") -> list[str]:
    """`dotted.name: before -> after` of each setting that differs; of another class the classes alone."""
    if before == after or same_path(before, after):
        return []
    if isinstance(before, list) and isinstance(after, list):
        before, after = dict(enumerate(before)), dict(enumerate(after))
    nested = isinstance(before, dict) and isinstance(after, dict)
    if not nested or before.get("class_path") != after.get("class_path"):
        return [f"{name}: {in_words(before)} -> {in_words(after)}"]
    if "class_path" in before:
        before, after = before.get("init_args", {}), after.get("init_args", {})
    keys, within = sorted(before.keys() | after.keys()), f"{name}." if name else ""
    return [line for k in keys for line in differences(before.get(k), after.get(k), f"{within}{k}")]


def same_path(one: Any, other: Any) -> bool:
    """Two spellings of the path of one file or folder that is there."""
    paths = isinstance(one, str) and isinstance(other, str) and os.path.exists(one) and os.path.exists(other)
    return paths and os.path.samefile(one, other)


def in_words(value: Any) -> str:
    """A class by its name, without its settings."""
    is_class = isinstance(value, dict) and "class_path" in value
    return value["class_path"].rpartition(".")[2] if is_class else repr(value)
