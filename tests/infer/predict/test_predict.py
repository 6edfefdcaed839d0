"""`python -m infer predict`: the run folder it fills, what it does when run again, and how it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from infer.__main__ import main
from infer.models.pipeline import load_pipeline
from tests.conftest import CAPTIONS, ROOT
from tests.infer.predict.runs import STEPS, assert_same_run, times

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_folder_is_complete(finished: Path, tiny_pipeline: Path) -> None:
    rows = pd.read_parquet(finished / "samples.parquet")
    assert list(rows) == [
        "prompt_id", "sample", "prompt", "negative_prompt", "alternative_prompt", "seed", "mitigation",
        "guidance_scale", "watched", "transition_timestep", "gated", "nfe", "seconds",
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
    assert summary["never_fired"] == summary["failed"] == 0 and summary["transition_timestep_median"] == 499
    names = {path.name for path in finished.iterdir()}
    assert names == {"images", "samples.parquet", "traces.parquet", "config.yaml", "summary.json"}


def test_stock_diffusers_remakes_a_row_from_its_seed(
    arguments: list[str], tiny_pipeline: Path, tmp_path: Path
) -> None:
    """Without mitigation, with what the README says."""
    assert main([*arguments, "--mitigation", "none", "--out", str(tmp_path)]) == 0
    row = pd.read_parquet(tmp_path / "samples.parquet").iloc[3]
    assert row["mitigation"] == "none" and np.isnan(row["transition_timestep"])
    stock = load_pipeline(str(tiny_pipeline))(
        row["prompt"], generator=torch.Generator().manual_seed(int(row["seed"])),
        guidance_scale=row["guidance_scale"], num_inference_steps=STEPS,
    ).images[0]  # fmt: skip
    written = np.array(Image.open(tmp_path / row["image"]), int)
    assert np.abs(written - np.array(stock, int)).max() <= 1


# Again


def test_run_again_it_makes_nothing(copy: Path, finished: Path, arguments: list[str]) -> None:
    """Nor with other batches."""
    before = times(copy)
    assert main([*arguments, "--out", str(copy)]) == 0
    assert main([*arguments, "--batch_size", "1", "--out", str(copy)]) == 0
    assert times(copy) == before
    assert_same_run(copy, finished)


def test_only_a_deleted_image_is_made_again(copy: Path, finished: Path, arguments: list[str]) -> None:
    (copy / "images/s1-0.png").unlink()
    before = times(copy)
    assert main([*arguments, "--out", str(copy)]) == 0
    after = times(copy)
    assert after.pop("s1-0.png") and after == before
    assert_same_run(copy, finished, tolerance=1)


def test_a_cut_image_is_made_again(copy: Path, finished: Path, arguments: list[str]) -> None:
    image = copy / "images/s1-0.png"
    image.write_bytes(image.read_bytes()[:-20])
    assert main([*arguments, "--out", str(copy)]) == 0
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
    """Nothing is to be made, but the tables are still in parts; the rest of a half-written image goes."""
    (copy / "parts").mkdir()
    for kind in ("samples", "traces"):
        (copy / f"{kind}.parquet").rename(copy / f"parts/0.{kind}.parquet")
    (copy / "summary.json").unlink()
    (copy / f"images/.{'0123' * 8}.png").write_bytes(b"half")
    assert main([*arguments, "--out", str(copy)]) == 0
    assert_same_run(copy, finished)
    assert (copy / "summary.json").exists()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "infer", *arguments]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_killed_run_is_finished_by_the_next(arguments: list[str], tmp_path: Path) -> None:
    """SIGKILL between two batches of one image; then the same as a run without interruption."""
    slow = [*arguments, "--batch_size", "1", "--model.num_inference_steps", "40", "--samples_per_prompt", "4"]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        command(*slow, "--out", str(out)), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    while not list(out.glob("parts/*.samples.parquet")):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = times(out)
    assert 0 < len(list(out.glob("parts/*.samples.parquet"))) < 12 and not (out / "samples.parquet").exists()
    assert main([*slow, "--out", str(out)]) == 0
    assert main([*slow, "--out", str(whole)]) == 0
    assert_same_run(out, whole)
    assert len(pd.read_parquet(out / "samples.parquet")) == 12
    assert len([name for name, when in times(out).items() if made.get(name) == when]) >= 1


def test_sigterm_finishes_the_batch(arguments: list[str], tmp_path: Path) -> None:
    """It writes what it has, and leaves with the signal's exit code."""
    slow = [*arguments, "--batch_size", "1", "--samples_per_prompt", "100"]
    process = subprocess.Popen(
        command(*slow, "--out", str(tmp_path)), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("parts/*.samples.parquet")):
        assert process.poll() is None, "it ended before it was stopped"
        time.sleep(0.01)
    process.terminate()
    assert "stopped by SIGTERM" in process.communicate()[1] and process.returncode == 143
    written = len(list(tmp_path.glob("parts/*.samples.parquet")))
    assert 0 < written < 300 and written == len(times(tmp_path))


def test_two_processes_make_the_same(finished: Path, arguments: list[str], tmp_path: Path) -> None:
    """Five images for two: another batch composition, another order, one left over."""
    (tmp_path / "one").mkdir()
    for out in ("one", "two"):
        shutil.copytree(finished, tmp_path / out, dirs_exist_ok=True)
        for path in (tmp_path / out / "images").glob("s[12]*.png"):
            path.unlink()
        (tmp_path / out / "images/s0-0.png").unlink()
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    subprocess.run(
        command(*arguments, *two, "--out", str(tmp_path / "two")), cwd=ROOT, env=ENVIRONMENT, check=True,
        capture_output=True,
    )  # fmt: skip
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    assert_same_run(tmp_path / "two", tmp_path / "one", tolerance=1)
    assert len(pd.read_parquet(tmp_path / "two/samples.parquet")) == 6


def test_a_process_may_find_nothing_to_do(finished: Path, arguments: list[str], tmp_path: Path) -> None:
    """One image is missing, and there are two processes."""
    out = Path(shutil.copytree(finished, tmp_path / "copy"))
    (out / "images/s1-0.png").unlink()
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--out", str(out)]
    done = subprocess.run(
        command(*arguments, *two), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(out, finished, tolerance=1)


# Which mitigation


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == main(["--help"]) == 0
    assert "python -m infer compare" in capsys.readouterr().out
    assert main(["perdict"]) == 2
    assert "predict" in capsys.readouterr().err


def test_help_waits_for_no_heavy_import() -> None:
    """It answers at once."""
    code = "import sys, infer.__main__ as m; m.main(['--help']); print({'torch', 'pandas'} & {*sys.modules})"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout.endswith("set()\n")
