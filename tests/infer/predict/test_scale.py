"""Long and large predict runs: too little memory, a folder in use, progress."""

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from callbacks.predict import progress as predict_progress
from callbacks.predict.progress import progress
from infer.__main__ import main
from infer.models.memory import is_out_of_memory
from infer.predict.lock import FolderLock
from tests.infer.predict.runs import assert_same_run, captions, command, refused, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")


# Memory


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Lets the UNet take so many rows while t > 500, where stp needs one an image; what it was given then."""
    forward, given = UNet2DConditionModel.forward, []

    def limit(most: int) -> list[int]:
        def limited(self: Any, sample: Tensor, t: Tensor, *args: Any, **options: Any) -> Any:
            if t > 500:
                given.append(len(sample))
                if len(sample) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(self, sample, t, *args, **options)

        monkeypatch.setattr(UNet2DConditionModel, "forward", limited)
        return given

    return limit


def test_a_batch_that_does_not_fit_is_halved(
    small: Callable[[int], list[int]], arguments: list[str], finished: Path, tmp_path: Path,
    warned: Callable[[], list[str]],
) -> None:  # fmt: skip
    """Once: the next batch begins with what fits. The rows and images are the same, in the same places."""
    given, out = small(2), tmp_path / "run"
    assert main([*arguments, "--out", str(out)]) == 0
    assert warned() == [
        "4 images at a time do not fit into the memory of cpu: going on with 2, for the same images"
    ]
    assert given == [4] + [2] * 6  # two steps of each two of the six images
    assert_same_run(out, finished, tolerance=1)


def test_a_single_image_that_does_not_fit_is_an_error(
    small: Callable[[int], list[int]], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    small(0)
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 1
    assert "a single image does not fit into the memory of cpu: try --model.dtype" in capsys.readouterr().err
    assert not (tmp_path / "run/.lock").exists()


def test_which_errors_are_of_memory() -> None:
    with pytest.raises(RuntimeError) as of_cpu:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(of_cpu.value) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# A folder in use


def test_one_run_at_a_time_fills_a_folder(
    predict: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The other is refused and changes nothing; then it may, and no lock stays."""
    lock = FolderLock(tmp_path / "run")
    error = refused(command(tiny_pipeline, tmp_path / "run", 4, "--prompt", "red square"), capsys)
    assert f"{tmp_path}/run is being filled by process " in error and "choose another folder" in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    lock.release()
    out = predict("--prompt", "red square", "--out", str(tmp_path / "run"))
    assert len(rows_of(out)) == 1 and not (out / ".lock").exists()
    error = refused(command(tiny_pipeline, out, 4, "--prompt", "blue circle"), capsys)
    assert "holds a different run" in error and not (out / ".lock").exists()


# Progress


def test_a_log_has_a_line_a_minute(
    predict: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a run whose batches take 40 s; images of an earlier run are not counted."""
    predict("--prompts", captions(tmp_path), "--trainer.limit_predict_batches", "1", "--batch_size", "1")
    clock = count(0, 40)
    monkeypatch.setattr(predict_progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    capsys.readouterr()
    predict("--prompts", captions(tmp_path), "--batch_size", "1")
    lines = [line for line in capsys.readouterr().err.splitlines() if "images" in line]
    assert lines == ["2 of 3 images, 0.025 a second, 40 s left"]
    assert not sys.stdout.isatty()


def test_the_time_left() -> None:
    line = progress(12_480, 1_000_000, 5426.0, 8)
    assert line == "12,480 of 1,000,000 images, 2.3 a second on 8 devices, 5 days left"
    assert progress(0, 10, 60.0, 1) == "0 of 10 images, 0 a second"
