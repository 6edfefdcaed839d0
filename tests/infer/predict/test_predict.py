"""`python -m infer predict`: the run folder it fills, what it does when run again, and how it refuses."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from callbacks.provenance import git_commit
from data.captioned import load_captioned
from infer.__main__ import main
from infer.predict.prompt_data import whole_batches
from tests.conftest import CAPTIONS, ROOT
from tests.infer.predict.runs import STEPS, assert_same_run, times
from tests.processes import Command

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_folder_is_complete(finished: Path, tiny_pipeline: Path) -> None:
    rows = pd.read_parquet(finished / "samples.parquet")
    assert list(rows) == [
        "prompt_id", "sample", "prompt", "negative_prompt", "alternative_prompt", "seed", "mitigation",
        "guidance_scale", "watched", "transition_timestep", "gated", "nfe", "gradient_passes", "seconds",
        "peak_memory_gib", "image", "failed_step",
    ]  # fmt: skip
    assert list(zip(rows["prompt_id"], rows["sample"], strict=True)) == [
        (f"s{n}", sample) for n in range(3) for sample in range(2)
    ]
    assert list(rows["prompt"][::2]) == CAPTIONS[:3]
    assert set(rows["mitigation"]) == {"stp"} and set(rows["guidance_scale"]) == {7.5}
    assert list(rows["image"]) == [f"images/{row.prompt_id}-{row.sample}.png" for row in rows.itertuples()]
    assert {Image.open(finished / path).size for path in rows["image"]} == {(16, 16)}
    # 6 steps: 831, 665, 499 ... the third is the first with guidance
    assert set(rows["transition_timestep"]) == {499} and set(rows["nfe"]) == {2 + 4 * 2}
    traces = pd.read_parquet(finished / "traces.parquet")
    assert list(traces) == [
        "prompt_id", "sample", "step", "timestep", "unconditional_rms", "conditional_rms", "difference_rms",
        "guidance_scale",
    ]  # fmt: skip
    assert len(traces) == 6 * STEPS and list(traces["step"][:STEPS]) == list(range(STEPS))
    assert list(traces["guidance_scale"][:STEPS]) == [0, 0, 7.5, 7.5, 7.5, 7.5]
    assert list(traces["difference_rms"][:STEPS].isna()) == [True, True, False, False, False, False]
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["mitigations"][0]["init_args"] == {
        "timestep": 500, "guidance_before": 0.0, "gate": None, "gate_timestep": None,
    }  # fmt: skip
    assert config["pipeline"] == str(tiny_pipeline) and config["guidance_scale"] == 7.5
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["images"] == 6 and summary["nfe_mean"] == 10 and summary["fired"] == 6
    assert summary["commit"] == git_commit()
    assert summary["never_fired"] == summary["failed"] == 0 and summary["transition_timestep_median"] == 499
    names = {path.name for path in finished.iterdir()}
    assert names == {"images", "samples.parquet", "traces.parquet", "config.yaml", "summary.json"}


# Again


def test_run_again_it_generates_nothing(copy: Path, finished: Path, arguments: list[str]) -> None:
    """Nor with other batches."""
    before = times(copy)
    assert main([*arguments, "--out", str(copy)]) == 0
    assert main([*arguments, "--batch_size", "1", "--out", str(copy)]) == 0
    assert times(copy) == before
    assert_same_run(copy, finished)


def test_only_an_image_that_is_gone_or_damaged_is_generated_again(
    copy: Path, finished: Path, arguments: list[str]
) -> None:
    (copy / "images/s1-0.png").unlink()
    image = copy / "images/s2-1.png"
    image.write_bytes(image.read_bytes()[:-20])
    image = copy / "images/s0-1.png"
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    before = times(copy)
    assert main([*arguments, "--out", str(copy)]) == 0
    changed = {name for name, when in times(copy).items() if before.get(name) != when}
    assert changed == {"s0-1.png", "s1-0.png", "s2-1.png"}
    assert_same_run(copy, finished, tolerance=1)


def test_deleted_traces_are_reported(
    copy: Path, arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (copy / "traces.parquet").unlink()
    assert main([*arguments, "--out", str(copy)]) == 0
    assert "has lost its traces" in caplog.text and len(pd.read_parquet(copy / "samples.parquet")) == 6


def test_a_run_killed_after_its_last_image_is_put_together(
    copy: Path, finished: Path, arguments: list[str]
) -> None:
    """Nothing is to be generated, but the tables are in parts; the rest of a half-written image goes."""
    (copy / "parts").mkdir()
    for kind in ("samples", "traces"):
        (copy / f"{kind}.parquet").rename(copy / f"parts/0.{kind}.parquet")
    (copy / "summary.json").unlink()
    (copy / f"images/.{'0123' * 8}.png").write_bytes(b"half")
    assert main([*arguments, "--out", str(copy)]) == 0
    assert_same_run(copy, finished)
    assert (copy / "summary.json").exists()


ONE_BY_ONE = ["--batch_size", "1"]


def ended(number: signal.Signals, run: Path, *arguments: str) -> Command:
    """A predict command that gets the signal when its third batch begins."""
    given = {"number": int(number), "batch": 2}
    callbacks = json.dumps([{"class_path": "tests.infer.predict.spy.Signal", "init_args": given}])
    options = [*ONE_BY_ONE, "--trainer.callbacks", callbacks, "--out", str(run)]
    command = Command("infer", [*arguments, *options])
    command.exit_codes()
    return command


def test_a_killed_run_is_finished_by_the_next(arguments: list[str], tmp_path: Path) -> None:
    """Then it is as a run without interruption."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert ended(signal.SIGKILL, out, *arguments).exit_codes() == [-signal.SIGKILL]
    before = times(out)
    assert len(list(out.glob("parts/*.samples.parquet"))) == 2 and not (out / "samples.parquet").exists()
    for folder in (out, whole):
        assert main([*arguments, *ONE_BY_ONE, "--out", str(folder)]) == 0
    assert_same_run(out, whole)
    assert len(pd.read_parquet(out / "samples.parquet")) == 6
    assert [name for name, when in times(out).items() if before.get(name) == when] == [*before]


@pytest.mark.parametrize("devices", [1, 2])
def test_sigterm_finishes_the_batch(devices: int, arguments: list[str], tmp_path: Path) -> None:
    """It writes what it has, and leaves with the signal's exit code, once for all processes."""
    run, settings = tmp_path / "run", []
    if devices == 2:  # Lightning starts the second one
        settings = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--samples_per_prompt", "3"]
    command = ended(signal.SIGTERM, run, *arguments, *settings)
    errors = command.errors()
    assert errors.count("stopped by SIGTERM") == 1 and command.exit_codes() == [143]
    assert "Error" not in errors
    written = len(list(run.glob("parts/*.samples.parquet")))
    assert written == len(times(run))
    assert written == 3 if devices == 1 else 3 <= written < 9


@pytest.mark.parametrize("missing", ["five", "one"])
def test_two_processes_make_the_same(
    missing: str, copy: Path, finished: Path, arguments: list[str], tmp_path: Path
) -> None:
    """Five images for two: another batch composition, another order, one left over; then one for two."""
    names = {"five": ["s0-0", "s1-0", "s1-1", "s2-0", "s2-1"], "one": ["s1-0"]}[missing]
    for name in names:
        (copy / f"images/{name}.png").unlink()
    alone = finished
    if missing == "five":
        alone = Path(shutil.copytree(copy, tmp_path / "alone"))
        assert main([*arguments, "--out", str(alone)]) == 0
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = Command("infer", [*arguments, *two, "--out", str(copy)], ranks=2)
    assert command.exit_codes() == [0, 0], command.errors()
    assert_same_run(copy, alone, tolerance=1)


# What it is good for, and help


def test_a_run_is_training_data(finished: Path) -> None:
    """Such as the images of DreamBooth's prior preservation."""
    samples = load_captioned(str(finished)).samples
    expected = {f"s{n}-{sample}": CAPTIONS[n] for n in range(3) for sample in range(2)}
    assert {sample.id: sample.caption for sample in samples} == expected
    assert samples[0].image == (finished / "images/s0-0.png").read_bytes()


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == main(["--help"]) == 0
    assert "python -m infer compare" in capsys.readouterr().out
    assert main(["perdict"]) == 2
    assert "predict" in capsys.readouterr().err


def test_help_waits_for_no_heavy_import() -> None:
    """It answers at once."""
    code = "import sys, infer.__main__ as m; m.main(['--help']); print({'torch', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize("size", [1, 3, 16])
def test_what_is_missing_is_made_in_the_batches_of_a_whole_run(size: int) -> None:
    """So that its numbers are the same: a batch's last bits depend on its size."""
    rows = np.arange(20)
    whole = whole_batches(rows, size)
    assert [len(batch) for batch in whole[:-1]] == [size] * (len(whole) - 1) and len(whole[-1]) <= size
    missing = np.concatenate([whole[number] for number in (0, *range(2, len(whole)))])
    again = whole_batches(missing, size)
    assert [batch.tolist() for batch in again] == [whole[n].tolist() for n in (0, *range(2, len(whole)))]
    assert [batch.tolist() for batch in whole_batches(np.array([0, 2, 19]), 3)] == [[0, 2], [19]]
    assert whole_batches(rows[:0], size) == []
