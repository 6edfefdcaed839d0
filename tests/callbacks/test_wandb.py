"""W&B: what a run carries, and that its trouble ends no run."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.wandb_run import WandbOptions, flat


class Broken:
    """A W&B run whose disk is full after `good` logs."""

    def __init__(self, good: int):
        self.good, self.logged = good, 0

    def log(self, *args: Any, **options: Any) -> None:
        self.logged += 1
        if self.logged > self.good:
            raise OSError("No space left on device")

    def define_metric(self, *args: Any, **options: Any) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `wandb.init` was given last."""
    options: dict[str, Any] = {}
    monkeypatch.setattr("wandb.init", lambda **given: options.update(given) or Broken(2))
    monkeypatch.setattr("wandb.run", None)
    return options


def test_a_run_carries_its_settings_flat(started: dict[str, Any], tmp_path: Path) -> None:
    config = {"model": {"dtype": "float32", "lora": None}, "seed": 3}
    options = WandbOptions(wandb="offline", wandb_group="g", wandb_tags=["a", "b"])
    assert options.logger(tmp_path / "run", config)
    assert started["config"].keys() == {"model.dtype", "model.lora", "seed", "git_commit"}
    assert (started["group"], started["tags"], started["name"]) == ("g", ["a", "b"], "run")
    first = started["id"]
    assert options.logger(tmp_path / "run", config) and started["id"] == first  # one run
    assert flat({"a": {"b": {"c": [1]}}}) == {"a.b.c": [1]}


def test_options_come_before_the_environment(
    started: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert WandbOptions(wandb="offline").logger(tmp_path) and started["project"] == "attraction-basin"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert WandbOptions(wandb="offline").logger(tmp_path) and started["project"] == "theirs"
    assert WandbOptions(wandb="offline", wandb_project="mine", wandb_entity="me").logger(tmp_path)
    assert (started["project"], started["entity"]) == ("mine", "me")


def test_an_error_switches_it_off(
    started: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, in one line; metrics after it go nowhere."""
    logger = WandbOptions(wandb="offline").logger(tmp_path)
    for step in range(6):
        logger.log_metrics({"loss": 1.0}, step=step)
    assert logger.broken and logger.experiment.logged == 3
    assert caplog.text.count("W&B tracking is off (No space left on device)") == 1


@pytest.mark.parametrize("mode, starts", [("online", 2), ("offline", 1), ("off", 0)])
def test_a_server_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str, starts: int
) -> None:
    """An online run becomes an offline one; where that fails too the run has no W&B."""
    seen: list[str] = []

    def fail(**given: Any) -> None:
        seen.append(given["settings"].mode)
        raise RuntimeError("no answer")

    monkeypatch.setattr("wandb.init", fail)
    monkeypatch.setattr("wandb.run", None)
    with caplog.at_level(logging.WARNING):
        assert WandbOptions(wandb=mode).logger(tmp_path) is None
    assert seen == ["online", "offline"][2 - starts :]
    assert caplog.text.count("W&B cannot start (no answer)") == starts


def test_no_secret_of_a_url_is_recorded(
    started: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the settings, and not in the command line, of which W&B makes a note when a run starts."""
    secret = "https://me:pass@host/model.pt?X-Amz-Signature=signed"  # noqa: S105
    arguments, seen = ["-m", "--sscd", secret], []
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(
        "wandb.init", lambda **given: seen.extend(sys.argv) or started.update(given) or Broken(2)
    )
    logger = WandbOptions(wandb="offline").logger(tmp_path, {"model": {"sources": [secret]}})
    assert seen == ["-m", "--sscd", "https://host/model.pt"] and sys.argv is arguments
    assert started["config"]["model.sources"] == ["https://host/model.pt"]
    updates: list[dict] = []
    logger.experiment.config = SimpleNamespace(update=lambda given, **_: updates.append(given))
    logger.log_hyperparams({"sscd": secret})
    assert updates == [{"sscd": "https://host/model.pt"}]
