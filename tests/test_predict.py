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
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from PIL import Image

from data.pipeline import load_pipeline
from infer.__main__ import main
from tests.conftest import CAPTIONS, ROOT

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 6
COSTS = ["seconds", "peak_memory_gib"]  # differ from run to run


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
        "--data.prompts", str(prompts), "--data.samples_per_prompt", "2", "--data.batch_size", "4",
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


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.array(Image.open(path), int) for path in (folder / "images").iterdir()}


def assert_same_run(folder: Path, other: Path, tolerance: int = 0) -> None:
    """The same rows in the same order, but for what they cost, and the same images."""
    for name, key in (("samples", ["prompt_id", "sample"]), ("traces", ["prompt_id", "sample", "step"])):
        a, b = (pd.read_parquet(path / f"{name}.parquet") for path in (folder, other))
        assert not a.duplicated(key).any()
        pd.testing.assert_frame_equal(a.drop(columns=COSTS, errors="ignore"),
                                      b.drop(columns=COSTS, errors="ignore"), rtol=1e-3)  # fmt: skip
    a, b = pixels(folder), pixels(other)
    assert a.keys() == b.keys()
    assert all(np.abs(a[name] - b[name]).max() <= tolerance for name in a)
    assert not (folder / "parts").exists()


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
        "timestep": 500, "guidance_before": 0.0, "gate": None, "gate_timestep": None, "ramp_timesteps": 0.0,
        "steps_after": None, "restart_solver": False,
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
    assert main([*arguments, "--data.batch_size", "1", "--out", str(copy)]) == 0
    assert times(copy) == before
    assert_same_run(copy, finished)


def test_only_a_deleted_image_is_made_again(copy: Path, finished: Path, arguments: list[str]) -> None:
    (copy / "images/s1-0.png").unlink()
    before = times(copy)
    assert main([*arguments, "--out", str(copy)]) == 0
    after = times(copy)
    assert after.pop("s1-0.png") and after == before
    assert_same_run(copy, finished, tolerance=1)


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
    slow = [
        *arguments,
        "--data.batch_size",
        "1",
        "--model.num_inference_steps",
        "40",
        "--data.samples_per_prompt",
        "4",
    ]
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


@pytest.mark.parametrize(
    "choice, name",
    [
        (["--mitigation", str(ROOT / "configs/mitigation/stp.yaml")], "stp"),
        (["--mitigation=stp"], "stp"),
        (["--mitigation", "StaticTransition", "--mitigation.timestep", "500"], "StaticTransition"),
        (["--mitigation=callbacks.static_transition.StaticTransition"], "StaticTransition"),
    ],
)
def test_every_way_to_name_a_mitigation_gives_the_same(
    arguments: list[str], finished: Path, tmp_path: Path, choice: list[str], name: str
) -> None:
    assert main([*arguments[:-2], *choice, "--out", str(tmp_path)]) == 0
    rows, expected = (pd.read_parquet(path / "samples.parquet") for path in (tmp_path, finished))
    assert set(rows["mitigation"]) == {name}
    columns = ["prompt_id", "seed", "transition_timestep", "nfe"]
    pd.testing.assert_frame_equal(rows[columns], expected[columns])
    assert all(np.array_equal(image, pixels(tmp_path)[key]) for key, image in pixels(finished).items())


def test_a_preset_stands_for_its_file_only_where_it_is_the_mitigation(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder may have its name; and options change it."""
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--mitigation.guidance_before=-2", "--data.limit", "1", "--out", "stp"]) == 0
    rows = pd.read_parquet("stp/samples.parquet")
    assert len(rows) == 2 and set(rows["nfe"]) == {2 * STEPS}


# Refusals


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line of the error; anything but an exit code of 1 or 2 fails."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code in (1, 2)
    assert "Traceback" not in captured.err
    return captured.err[captured.err.index("error:"):]  # fmt: skip


@pytest.mark.parametrize(
    "change, named",
    [
        (["--data.seed", "1"], "seed: 0 -> 1"),
        (["--model.guidance_scale", "3"], "guidance_scale: 7.5 -> 3.0"),
        (["--mitigation", "none"], "mitigation: 'stp' -> 'none'"),
        (["--mitigation.timestep", "600"], "(mitigations.0.timestep: 500.0 -> 600.0)"),
    ],
)
def test_a_folder_of_another_run_is_left_alone(
    finished: Path, arguments: list[str], capsys: pytest.CaptureFixture, change: list[str], named: str
) -> None:
    """And what is different is said."""
    before = times(finished)
    error = refused([*arguments, *change, "--out", str(finished)], capsys)
    assert "holds a different run" in error and named in error and error.count("\n") == 1
    assert times(finished) == before


def test_other_prompts_under_the_same_name_are_another_run(
    copy: Path, arguments: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    original = prompts.read_text()
    prompts.write_text(original.replace("red square", "red circle"))
    try:
        assert "prompts_sha256" in refused([*arguments, "--out", str(copy)], capsys)
    finally:
        prompts.write_text(original)


def test_a_model_trained_again_under_the_same_name_is_another_run(
    copy: Path, arguments: list[str], tiny_pipeline: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its old images would be reported as its own."""
    weights = tiny_pipeline / "unet/diffusion_pytorch_model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        assert "pipeline_sha256" in refused([*arguments, "--out", str(copy)], capsys)
    finally:
        weights.write_bytes(original)


def test_a_training_run_is_not_written_over(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 3}\n")
    assert "something else than a predict run" in refused([*arguments, "--out", str(tmp_path)], capsys)
    assert (tmp_path / "config.yaml").read_text() == "trainer: {max_steps: 3}\n"


def test_a_run_that_failed_does_not_keep_the_folder(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It made nothing: the corrected command may have it."""
    error = refused([*arguments, "--mitigation.timestep", "999", "--out", str(tmp_path)], capsys)
    assert "the 6 timesteps of this schedule run from 831 to 1" in error
    assert main([*arguments, "--data.limit", "1", "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (["--model.pipeline", "/nowhere/model"], "no model folder '/nowhere/model'"),
        (["--model.num_inference_steps", "0"], "num_inference_steps must be at least 1"),
        (["--model.num_inference_steps", "many"], "model.num_inference_steps"),
        (["--model.nonsense", "1"], "--model.nonsense"),
        (["--data.prompts", "/nowhere/prompts.txt"], "no prompt file"),
        (["--data.limit", "0"], "limit must be at least 1"),
        (["--data.batch_size", "0"], "must be at least 1"),
        (["--mitigation.timestep", "2000"], "would never hold guidance back"),
        (["--mitigation.guidance_before", "7.5"], "guidance_before equals guidance_scale"),
        (["--mitigation.nonsense", "1"], "'nonsense' is not accepted"),
        (["--mitigation", "spt"], "there are dtp, dtp_robust, none, og_dtp, og_stp, og_two_pass, stp"),
        (["--mitigation", "nowhere/x.yaml"], "nowhere/x.yaml"),
        (["--config", "/nowhere/x.yaml"], "/nowhere/x.yaml"),
        (["--trainer.accelerator", "gpu"], "gpu"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    change: list[str],
    message: str,
) -> None:
    for kind in (CUDAAccelerator, MPSAccelerator):  # a machine without a GPU, wherever this runs
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda: False))
    assert message in refused([*arguments, *change, "--out", str(tmp_path / "out")], capsys)


def test_a_broken_model_folder_is_one_clear_error(
    arguments: list[str], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It lacks a part, the part is empty, or its weights are cut."""
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    asked = [*arguments, "--model.pipeline", str(model), "--out", str(tmp_path / "out")]
    weights = model / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "not a whole diffusers pipeline" in refused(asked, capsys)
    weights.unlink()
    assert "diffusion_pytorch_model.safetensors" in refused(asked, capsys)
    shutil.rmtree(model / "vae")
    assert "it lacks vae" in refused(asked, capsys)


def test_an_empty_prompt_file_is_one_clear_error(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty.txt").touch()
    asked = [*arguments, "--data.prompts", str(tmp_path / "empty.txt"), "--out", str(tmp_path / "out")]
    assert "holds no prompt" in refused(asked, capsys)


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
