"""Every bad input of the table is one line, and no traceback; what strangers wrote runs nowhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_inputs import fault, try_out
from tests.bad_inputs.__main__ import GROUPS
from tests.conftest import ROOT


@pytest.mark.parametrize("title", GROUPS)
def test_bad_inputs_are_one_line(title: str, tmp_path: Path) -> None:
    group, faults = GROUPS[title], []
    for number, bad in enumerate(group.inputs):
        folder = tmp_path / str(number)
        folder.mkdir()
        faults.append(fault(bad, try_out(group, bad, folder)))
        assert not (folder / "unpickled").exists()
    assert not list(filter(None, faults))


SAFE = {  # what else it may not be called without: a loader that runs code, or a decoder that starts programs
    "torch.load": "weights_only", "Image.open": "formats", "from_pretrained": "use_safetensors",
}  # fmt: skip
RUNS_CODE = {"pickle.load", "pickle.loads", "yaml.load", "np.load", "pd.read_pickle", "eval", "exec"}
NO_WEIGHTS = {"CLIPTokenizer", "CLIPImageProcessorPil"}  # of which nothing but JSON is read


def calls(path: Path) -> Iterator[tuple[str, set[str | None]]]:
    """The names of a file's calls, with their keywords."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg for keyword in node.keywords}


def test_no_file_of_anyone_runs_as_a_program() -> None:
    """By a pickle, a Python object in YAML, or PostScript."""
    found = []
    for folder in ("data", "infer", "callbacks", "train"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name, keywords in calls(path):
                needed = next((word for end, word in SAFE.items() if name.endswith(end)), None)
                unsafe = needed and not {needed, None} & keywords and name.split(".")[0] not in NO_WEIGHTS
                if unsafe or name in RUNS_CODE:
                    found.append(f"{path.relative_to(ROOT)}: {name}")
    assert found == []
