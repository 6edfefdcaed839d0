"""Imports between our packages go one way: only `__main__.py` and the configs compose across."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"data": set(), "infer": {"data"}, "train": {"data"}, "callbacks": {"infer", "data"}}


def imported(path: Path) -> Iterator[str]:
    """The absolute name of every module that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.module


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_its_arrows_allow(package: str) -> None:
    """Also inside functions: an import that waits is an arrow too."""
    files = sorted(path for path in (ROOT / package).rglob("*.py") if path.name != "__main__.py")
    assert files
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    wrong = [(str(path.relative_to(ROOT)), name) for path in files for name in imported(path)]
    assert [(path, name) for path, name in wrong if name.split(".")[0] in forbidden] == []


def test_lightning_has_one_name() -> None:
    """`pytorch_lightning` is a second copy of the classes: `isinstance` does not take one for the other."""
    files = [path for folder in (*MAY_IMPORT, "tests") for path in (ROOT / folder).rglob("*.py")]
    assert [
        str(path) for path in files if any(n.split(".")[0] == "pytorch_lightning" for n in imported(path))
    ] == []
