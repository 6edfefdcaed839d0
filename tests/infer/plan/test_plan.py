"""`python -m infer plan`: what is there, what is to be made, and what that costs by a clock of our own."""

from pathlib import Path

import pytest

from infer.__main__ import main
from infer.metrics.training_set import TrainingSet
from infer.plan import scoring
from infer.predict.module import Generate
from tests.clock import Clock

pytestmark = pytest.mark.usefixtures("one_thread")


def runs(text: str) -> dict[str, list[str]]:
    """The lines of the printed tables by their first cell."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {name: values for name, *values in cells}


@pytest.fixture
def plan_args(compare_args: list[str]) -> list[str]:
    return ["plan", *compare_args[1:]]


def only(plan_args: list[str], mitigations: str, folder: Path) -> list[str]:
    """These mitigations without a base model."""
    out = str(folder / "out")
    return [*plan_args, "--mitigations", mitigations, "--base_pipeline", "none", "--out", out]


def test_a_plan_counts_what_is_there(
    plan_args: list[str], finished: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of a finished comparison whose table gets a row more; other settings are refused as a run would."""
    before = sorted(finished.rglob("*"))
    assert main([*plan_args, "--mitigations", "none,stp,og_stp", "--out", str(finished)]) == 0
    table = runs(capsys.readouterr().out)
    assert table["images"] == ["16 of 4 runs, 4 to make"]
    assert table["none"] == table["stp"] == table["base_model"] == ["4", "0"]
    assert table["og_stp"] == ["0", "4"]
    assert main([*plan_args, "--model.guidance_scale", "2", "--out", str(finished)]) == 1
    assert "holds a different run (guidance_scale: 7.5 -> 2.0)" in capsys.readouterr().err
    assert sorted(finished.rglob("*")) == before


def test_hours_and_cost_follow_from_what_each_part_takes(
    plan_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A row of the UNet 10 s, loading a model 90 s; to score takes nothing. Two devices make 4 images.

    8 steps: 16 rows an image without mitigation, 12 with STP, whose first 4 steps have one prediction.
    """
    clock = Clock(monkeypatch)
    clock.takes(Generate, "load", lambda _: 90)
    real = Generate.generate

    def generate(module: Generate, requests: list, rules: list):
        made = real(module, requests, rules)
        clock.seconds += 10 * made.denoised.nfe.sum().item()
        return made

    monkeypatch.setattr(Generate, "generate", generate)
    args = only(plan_args, "none,stp", tmp_path)
    args += ["--trainer.devices", "2", "--measure", "--price_per_hour", "90", "--batch_size", "1"]
    kept = sorted(Path(plan_args[2]).rglob("*"))
    assert main(args) == 0
    printed = capsys.readouterr()
    table = runs(printed.out)
    assert table["none"] == ["0", "4", "16", "2.7 min", "5.3 min", "16"]  # 160 s, 320 s, 2 devices x 8
    assert table["stp"] == ["0", "4", "12", "2 min", "4 min", "12"]
    assert table["loading"][-2] == "1.5 min"  # first images take no longer than others
    assert "one device was measured: 2 are taken to be 2 times as fast" in " ".join(printed.out.split())
    assert list(tmp_path.iterdir()) == [] and sorted(Path(plan_args[2]).rglob("*")) == kept


def test_a_batch_of_the_jobs_size_is_as_quick_as_its_unet(
    plan_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A call of the UNet that takes 1 s for however many rows: four images at once cost a fourth each."""
    clock = Clock(monkeypatch)
    clock.takes(Generate, "generate", lambda *_: 8)
    clock.takes(Generate, "call_unet", lambda *_: 1)
    args = only(plan_args, "none", tmp_path)
    assert main([*args, "--measure", "--measure_images", "1"]) == 0
    printed = capsys.readouterr()
    assert runs(printed.out)["none"] == ["0", "4", "16", "2 s", "8 s"]
    assert "scaled to batches of 4" in " ".join(printed.out.split())


def test_scoring_counts_every_training_image(
    plan_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Six that the run showed, 60 s each for the similarity and for the features; nothing is cached."""
    clock = Clock(monkeypatch)
    clock.takes(Generate, "generate", lambda *_: 1)
    clock.takes(TrainingSet, "embed", lambda training, _: 60 * len(training.images))
    clock.takes(scoring, "score_folder", lambda *_: 6 * 30)
    cache = tmp_path / "cache"
    args = only(plan_args, "none", tmp_path)
    assert main([*args, "--cache", str(cache), "--measure"]) == 0
    # 6 x 120 s of training images and 4 x 30 s of generated ones
    assert runs(capsys.readouterr().out)["scoring"][-1] == "14 min"
    assert not cache.exists() and list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_here_is_not_measured(
    plan_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The plan itself needs no device."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    args = only(plan_args, "none", tmp_path)
    args += ["--trainer.accelerator", "gpu", "--trainer.devices", "8"]
    assert main(args) == 0
    assert runs(capsys.readouterr().out)["batch"] == ["16 per device, 8 devices"]
    assert main([*args, "--measure"]) == 1
    assert "trainer.accelerator gpu is not here" in capsys.readouterr().err
