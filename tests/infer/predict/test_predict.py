"""`python -m infer predict`: the run folder it fills, what it does when run again, and how it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from callbacks.provenance import git_commit
from data.captioned import load_captioned
from infer.__main__ import main
from tests.conftest import CAPTIONS, ROOT
from tests.infer.predict.runs import STEPS, assert_same_run, times

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


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SLOW = ["--batch_size", "1", "--model.num_inference_steps", "40", "--samples_per_prompt", "4"]


def ended(number: signal.Signals, run: Path, *arguments: str) -> subprocess.Popen:
    """Python with these arguments, which a signal ended after the first batch of `run`; its `errors`."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while not list(run.glob("parts/*.samples.parquet")):
        assert process.poll() is None, "it ended before the signal"
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a cluster does: each process gets it
    process.errors = process.communicate()[1]
    return process


def test_a_killed_run_is_finished_by_the_next(arguments: list[str], tmp_path: Path) -> None:
    """Then it is as a run without interruption."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    ended(signal.SIGKILL, out, "-m", "infer", *arguments, *SLOW, "--out", str(out))
    before = times(out)
    assert 0 < len(list(out.glob("parts/*.samples.parquet"))) < 12 and not (out / "samples.parquet").exists()
    for folder in (out, whole):
        assert main([*arguments, *SLOW, "--out", str(folder)]) == 0
    assert_same_run(out, whole)
    assert len(pd.read_parquet(out / "samples.parquet")) == 12
    assert [name for name, when in times(out).items() if before.get(name) == when]


@pytest.fixture
def one_process(arguments: list[str], tmp_path: Path) -> tuple[Path, subprocess.Popen]:
    """A run that SIGTERM ended."""
    run = tmp_path / "run"
    return run, ended(signal.SIGTERM, run, "-m", "infer", *arguments, *SLOW, "--out", str(run))


@pytest.fixture(scope="module")
def two_processes(
    finished: Path, arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.Popen]:
    """The same on two devices; beside it folders that lack `five` images or `one`, which they made then."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("five", "one", "alone"):
        shutil.copytree(finished, folder / name)
    for name in ("five", "alone"):
        for path in [*(folder / name / "images").glob("s[12]*.png"), folder / name / "images/s0-0.png"]:
            path.unlink()
    (folder / "one/images/s1-0.png").unlink()
    script = folder / "script.py"  # each process runs it whole
    script.write_text(f"""
import sys
from infer.__main__ import main
try:
    code = main([*sys.argv[1:], *{SLOW}, "--out", "{folder}/run"])
except SystemExit as stopped:
    code = stopped.code
for name in ("five", "one"):
    assert main([*sys.argv[1:], "--out", f"{folder}/{{name}}"]) == 0
sys.exit(code)
""")
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    return folder / "run", ended(signal.SIGTERM, folder / "run", str(script), *arguments, *two)


@pytest.mark.parametrize("processes", ["one_process", "two_processes"])
def test_sigterm_finishes_the_batch(processes: str, request: pytest.FixtureRequest) -> None:
    """It writes what it has, and leaves with the signal's exit code, once for all processes."""
    run, process = request.getfixturevalue(processes)
    assert process.errors.count("stopped by SIGTERM") == 1 and process.returncode == 143
    assert "Error" not in process.errors
    written = len(list(run.glob("parts/*.samples.parquet")))
    assert 0 < written < 12 and written == len(times(run))


def test_two_processes_make_the_same(
    two_processes: tuple[Path, subprocess.Popen], finished: Path, arguments: list[str]
) -> None:
    """Five images for two: another batch composition, another order, one left over; then one for two."""
    folder = two_processes[0].parent
    assert main([*arguments, "--out", str(folder / "alone")]) == 0
    assert_same_run(folder / "five", folder / "alone", tolerance=1)
    assert_same_run(folder / "one", finished, tolerance=1)


# Help


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
