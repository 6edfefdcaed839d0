"""Imports between rooms go one way: only `__main__.py` and the configs compose across."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {  # of packages, and of rooms within a package: what else they may import there
    "data": set(),
    "infer": {"data"},
    "callbacks": {"data", "infer"},
    "train": {"data", "infer", "callbacks"},
    "data.images": {"files", "remote"},
    "data.sources": {"captioned", "disk", "files", "images", "remote"},
    "data.regimes": {"captioned", "cli", "ranges"},
    "data.prompts": {"batches", "captioned", "files", "remote", "sources", "table_files"},
    "data.repeats": {"captioned", "files", "images", "remote", "sources"},
    "data.inspect": {"captioned", "files", "images", "repeats", "sources"},
    "infer.models": set(),
    "infer.denoising": {"models"},
    "infer.metrics": {"options", "models"},
    "infer.index": {"options", "denoising", "metrics"},
    "infer.predict": {"options", "models", "denoising", "index"},
    "infer.report": {"metrics", "plotting", "predict"},
    "infer.compare": {"options", "models", "denoising", "metrics", "predict", "report"},
    "infer.plan": {"options", "models", "denoising", "metrics", "predict", "compare"},
    "infer.score": {"options", "models", "metrics", "predict", "compare", "report"},
    "infer.audit": {"options", "models", "denoising", "metrics", "plotting", "predict", "compare", "report"},
    "infer.basin": {"options", "models", "denoising", "metrics", "plotting"},
    "infer.calibrate": {"options", "models", "denoising", "metrics", "plotting"},
    "infer.detect": {"options", "models", "denoising", "metrics", "plotting"},
    "infer.doctor": {"models"},
    "callbacks.mitigations": set(),
    "callbacks.adapters": {"mitigations"},
    "callbacks.predict": {"mitigations", "provenance", "wandb_run"},
    "train.dataset": {"objective"},
    "train.run_folder": set(),
    "train.plan": {"cli", "dataset", "finetune", "lora_layers", "model_check", "sharded"},
    "train.base_model": {"dataset", "finetune", "schedule"},
}


def imported(path: Path) -> Iterator[str]:
    """The absolute name of every module that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_its_arrows_allow(room: str) -> None:
    """Also inside functions: a late import is an arrow too."""
    package, _, own = room.partition(".")
    files = sorted(
        path for path in (ROOT / room.replace(".", "/")).rglob("*.py") if path.name != "__main__.py"
    )
    assert files
    known = {name for name in MAY_IMPORT if "." not in name}
    wrong = set()
    for path in files:
        for parts in (name.split(".") for name in imported(path)):
            if own and parts[0] == package and parts[1] not in MAY_IMPORT[room] | {own}:
                wrong.add((str(path.relative_to(ROOT)), ".".join(parts)))
            if not own and parts[0] in known - MAY_IMPORT[room] - {package}:
                wrong.add((str(path.relative_to(ROOT)), ".".join(parts)))
    assert sorted(wrong) == []


def test_every_room_has_its_arrows() -> None:
    rooms = {
        f"{package}.{path.name}"
        for package in ("data", "infer", "callbacks", "train")
        for path in (ROOT / package).iterdir()
        if (path / "__init__.py").exists()
    }
    assert rooms - {"data.emoji", "data.scenes"} == {room for room in MAY_IMPORT if "." in room}


def test_lightning_has_one_name() -> None:
    """`pytorch_lightning` is a second copy of the classes: `isinstance` does not take one for the other."""
    folders = ("data", "infer", "callbacks", "train", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert [
        str(path) for path in files if any(n.split(".")[0] == "pytorch_lightning" for n in imported(path))
    ] == []
