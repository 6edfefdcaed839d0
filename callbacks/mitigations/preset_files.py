"""The presets of configs/mitigation as files, without the classes that they name: known at once."""

import difflib
from pathlib import Path
from typing import Any

import yaml

from data.files import one_line

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "mitigation"


def preset_path(name: str) -> Path | None:
    """The YAML file that a preset's name or a path means; None for anything else, such as a class name."""
    for path in (FOLDER / f"{name}.yaml", Path(name)):
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            return path
    return None


def preset_names() -> list[str]:
    names = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")]
    return sorted(names, key=lambda name: (name.count("/"), name))


def names_in(name: str) -> list[str]:
    """`[somepalli_word, dtp]` of `somepalli_word+dtp`: several mitigations in one run, in this order."""
    return [name] if preset_path(name) or name.startswith("{") else name.split("+")


def read_preset(name: str) -> dict[str, Any]:
    """`class_path` and `init_args` of a preset's file; ValueError for no preset or no mitigation's file."""
    if (path := preset_path(name)) is None:
        near = difflib.get_close_matches(name, preset_names(), n=3, cutoff=0.5)
        ask = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"no mitigation preset {name!r}: {ask}see configs/mitigation, or give a YAML file's path"
        )
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {one_line(error)}") from error
    if not isinstance(content, dict) or not {"class_path"} <= {*content} <= {"class_path", "init_args"}:
        raise ValueError(f"{path}: give a class_path, and its options in init_args")
    return {"class_path": content["class_path"], "init_args": content.get("init_args") or {}}


def check_presets(names: list[str]) -> None:
    """ValueError for a name that can only be a preset's, and is none; classes and paths are not looked at."""
    for name in (part for value in names if not value.startswith(("{", "[")) for part in names_in(value)):
        if name.islower() and "." not in name:
            read_preset(name)
