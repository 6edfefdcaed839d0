"""A finished predict run on the tiny model."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from infer.__main__ import main
from tests.conftest import CAPTIONS
from tests.infer.predict.runs import STEPS


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prompts with ids."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"s{n}", "text": CAPTIONS[n]}) + "\n" for n in range(3)))
    return path


@pytest.fixture(scope="module")
def arguments(tiny_pipeline: Path, prompts: Path) -> list[str]:
    """Six images with delayed guidance."""
    return [
        "predict", "--model.pipeline", str(tiny_pipeline), "--model.num_inference_steps", str(STEPS),
        "--prompts", str(prompts), "--samples_per_prompt", "2", "--batch_size", "4",
        "--trainer.accelerator", "cpu", "--mitigation", "stp",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(arguments: list[str], one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, for reading."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*arguments, "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same, for changing."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What we and those who embed the prompts log as a warning or worse, kept from the root logger or not."""
    embedders = ("diffusers", "transformers")
    for name in embedders:
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)

    def records() -> list[str]:
        return [
            record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
            and record.name.split(".")[0] in (*embedders, "infer", "data", "callbacks")
        ]  # fmt: skip

    return records
