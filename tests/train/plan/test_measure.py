"""`python -m train plan --measure`: hours and cost of a whole fit, by a clock of our own; nothing stays."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from callbacks.export import Export
from callbacks.monitor import Monitor
from tests.clock import Clock
from tests.train.plan.test_plan import arguments
from tests.train.test_configs_train import rows
from train.__main__ import main
from train.dataset import planned
from train.finetune import Finetune
from train.plan.few_cached import Encoding
from train.plan.measure import Measured
from train.plan.time_table import Job, seconds_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A step takes 2 s, the first one 12; an image of the monitor 3, a checkpoint 5, an export 7."""
    clock = Clock(monkeypatch)
    clock.takes(Finetune, "training_step", lambda model, *_: 2 if model.global_step else 12)
    clock.takes(Monitor, "run", lambda monitor, *_: 3 * len(monitor.requests))
    clock.takes(Trainer, "save_checkpoint", lambda *_: 5)
    clock.takes(Export, "write", lambda *_: 7)
    clock.takes(planned, "encode_images", lambda _, pixels, __: len(pixels))  # 1 s an image
    return clock


def measured(out: Path, shards: Path, pipeline: Path, *more: str, **settings: Any) -> int:
    given = {"model__pipeline": pipeline, "data__resolution": 16, "monitor__count": 2, **settings}
    return main([*arguments("plan", out, shards, **given), "--measure", *more])


def test_a_job_costs_what_its_parts_take(
    clock: Clock, tiny_shards: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of 1000 steps five are timed. Images after 400, 800 and 1000, checkpoints after 500 and 1000."""
    settings = {"trainer__max_steps": 1000, "monitor__every_n_steps": 400, "data__batch_size": 3}
    more = "--measure_steps", "5", "--price_per_hour", "36"
    assert measured(tmp_path / "run", tiny_shards, tiny_pipeline, *more, **settings) == 0
    table = rows(capsys.readouterr().out)
    assert table["measured"].startswith("5 steps of 3 images on one CPU, 1 thread")
    assert table["images per second"] == "1.5"
    assert table["steps"] == "1,000 x 2 s: 33 min"
    assert table["monitor"] == "3 x 6 s: 18 s" and table["checkpoints"] == "2 x 5 s: 10 s"
    assert table["start"] == "10 s" and table["export"] == "7 s"  # what the first step took longer
    assert table["encoding"] == "8 images, 8 captions: 8 s"
    assert table["whole job"] == "about 34 min"  # 2053 s
    assert table["cost"] == "about 21 (0.57 device hours at 36)"
    assert list(tmp_path.iterdir()) == []


def test_a_measured_plan_reads_a_whole_cache_and_changes_nothing(
    tiny_shards: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Beside a run that has ended, and with a cache that the plan before it did not make."""
    settings = {"model__pipeline": tiny_pipeline, "data__resolution": 16}
    run, cache = tmp_path / "run", tmp_path / "cache"
    assert measured(run, tiny_shards, tiny_pipeline, trainer__max_steps=8) == 0
    assert rows(capsys.readouterr().out)["encoding"].startswith("8 images, 8 captions") and not cache.exists()
    assert main(arguments("fit", run, tiny_shards, **settings)) == 0

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    before = files()
    capsys.readouterr()
    assert measured(run, tiny_shards, tiny_pipeline, trainer__max_steps=8) == 0
    table = rows(capsys.readouterr().out)
    assert "encoding" not in table and table["measured"].startswith("5 steps")  # 3 to warm up
    assert files() == before and before


def test_a_stream_is_measured_too(
    clock: Clock, tiny_shards: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    args = ["plan", "stream", "--out", str(tmp_path / "run"), "--model.pipeline", str(tiny_pipeline),
            "--trainer.max_steps", "50", "--data.sources", str(tiny_shards), "--data.workers", "0",
            "--data.batch_size", "2", "--trainer.accelerator", "cpu", "--trainer.devices", "1",
            "--monitor.count", "1", "--monitor.num_inference_steps", "1", "--measure",
            "--measure_steps", "2"]  # fmt: skip
    assert main(args) == 0
    table = rows(capsys.readouterr().out)
    assert table["steps"] == "50 x 2 s: 1.7 min" and table["monitor"] == "1 x 3 s: 3 s"
    assert list(tmp_path.iterdir()) == []


def test_more_devices_share_what_they_can() -> None:
    """Eight devices: the steps of a run take as long, the cache an eighth; the first one's work stays."""
    parts = Measured(
        torch.device("cpu"), 20, step=2, start=10, images=6, checkpoint=5, export=7,
        encoding={"images": Encoding(800, 400.0)},
    )  # fmt: skip
    one, eight = (seconds_of(Job(1000, 4, devices, 300, 500), parts) for devices in (1, 8))
    assert one == {"start": 10, "encoding": 400, "steps": 2000, "monitor": 24, "checkpoints": 10, "export": 7}
    assert eight == one | {"encoding": 50}
    longer = seconds_of(Job(3000, 4, 1, 300, None), parts)
    assert (longer["steps"], longer["monitor"], longer["checkpoints"]) == (6000, 60, 0)


def test_devices_that_are_not_here_are_planned_and_said_to_be_assumed(
    clock: Clock, tiny_shards: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Eight processes of the CPU; eight GPUs where there is none are planned, and not measured."""
    settings = {"trainer__devices": 8, "trainer__max_steps": 20, "data__batch_size": 3}
    assert measured(tmp_path / "run", tiny_shards, tiny_pipeline, **settings) == 0
    table = rows(capsys.readouterr().out)
    assert table["assumed"].startswith("one device was measured: 8 are taken to be 8 times as fast")
    assert table["images per second"] == "12, 1.5 on one" and table["steps"].endswith(": 40 s")
    settings |= {"trainer__accelerator": "gpu", "trainer__precision": "16-mixed"}
    args = arguments("plan", tmp_path / "run", tiny_shards, model__pipeline=tiny_pipeline, **settings)
    if not torch.cuda.is_available():
        assert main(args) == 0
        assert "8 devices" in rows(capsys.readouterr().out)["batch"]
        assert main([*args, "--measure"]) == 1
        assert "gpu" in capsys.readouterr().err.lower()
