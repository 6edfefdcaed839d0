"""The scripts of configs/cluster in a real SLURM with two nodes, where it is installed: some ten minutes.

python -m pytest -m slow tests/train/test_slurm.py
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from tests.conftest import CAPTIONS
from tests.processes import until
from tests.slurm import Cluster, cluster, missing
from tests.train import fits
from tests.train.fits import callback, short, unet

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "")]
world = fits.world  # a fixture
SMALL = ("--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=900")
FIT, PREDICT = "configs/cluster/cluster.slurm", "configs/cluster/predict.slurm"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


def config(world: Path, out: Path, steps: int, seconds: float, **settings) -> Path:
    """The file of a fit, each batch of which takes that many seconds longer."""
    slow = [callback("Slow", seconds=seconds)]
    settings = {"trainer__max_steps": steps, "checkpoint_every": 2, "trainer__callbacks": slow} | settings
    words = iter(short(world, out, trainer__enable_progress_bar=None, **settings)[1:])
    content: dict = {}
    for name, value in zip(words, words, strict=True):
        *within, last = name.removeprefix("--").split(".")
        place = content
        for key in within:
            place = place.setdefault(key, {})
        place[last] = yaml.safe_load(value)
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(content))
    return path


def submit(slurm: Cluster, out: Path, *args: str) -> tuple[str, Path]:
    """The job, and its log."""
    log = out.with_suffix(".txt")
    return slurm.sbatch(*SMALL, f"--output={log}", *args), log


def trained(run: Path) -> bool:
    """Whether there is something to go on from."""
    return (run / "checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("how", ["preempted", "time is up", "node dies"])
def test_a_fit_that_is_interrupted_goes_on(how: str, slurm: Cluster, world: Path, tmp_path: Path) -> None:
    """By itself, in the same folder and W&B run, to the weights and metrics of one that is not."""
    run = tmp_path / "run"
    file = config(world, run, steps=16, seconds=3)
    limit = ["--time=1", "--signal=B:USR1@20"] if how == "time is up" else ["--time=20"]
    job, log = submit(slurm, run, *limit, FIT, str(file), "--wandb", "offline")
    until(lambda: trained(run) or slurm.show(job)["Restarts"] != "0", 300, lambda: str(slurm.show(job)))
    node = slurm.show(job)["NodeList"]
    if how == "preempted":
        slurm.sbatch(
            "--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 5"
        )
    if how == "node dies":
        slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    until(lambda: slurm.show(job)["Restarts"] != "0", 120, log.read_text)
    if how == "node dies":
        slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    if how == "time is up":
        slurm.run("scontrol", "update", f"jobid={job}", "timelimit=30")
    slurm.wait(job, "COMPLETED", 600)
    assert "model after 16 steps" in log.read_text() and "Traceback" not in log.read_text()
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["step"].tolist() == [*range(16)]
    ids = {path.name.rsplit("-", 1)[1] for path in run.glob("wandb/offline-run-*")}
    assert ids == {(run / "wandb_id.txt").read_text()}
    whole = tmp_path / "whole"
    fits.run_process(["fit", "--config", str(config(world, whole, steps=16, seconds=0))])
    torch.testing.assert_close(unet(run / "pipeline"), unet(whole / "pipeline"), atol=1e-5, rtol=0)


def test_a_cancelled_fit_goes_on_with_the_same_line(slurm: Cluster, world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = ["--time=20", FIT, str(config(world, run, steps=8, seconds=2))]
    job, log = submit(slurm, run, *args)
    until(lambda: trained(run), 300, lambda: str(slurm.show(job)))
    slurm.run("scancel", job)
    slurm.wait(job, "CANCELLED", 60)
    until(lambda: not slurm.run("squeue", "--noheader", f"--jobs={job}", "--states=CG").strip(), 60)
    job, log = submit(slurm, run, *args)
    slurm.wait(job, "COMPLETED")
    assert "continuing from" in log.read_text() and "model after 8 steps" in log.read_text()


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_two_nodes_are_one_run(strategy: str, slurm: Cluster, world: Path, tmp_path: Path) -> None:
    """They see the images of one process with a batch twice as large, and train the same."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    file = config(world, run, steps=4, seconds=0, data__batch_size=2)
    job, log = submit(slurm, run, "--nodes=2", "--time=20", FIT, str(file), "--trainer.strategy", strategy)
    slurm.wait(job, "COMPLETED", 600)
    assert log.read_text().count("model after 4 steps") == 1
    fits.run_process(["fit", "--config", str(config(world, whole, steps=4, seconds=0, data__batch_size=4))])
    torch.testing.assert_close(unet(run / "pipeline"), unet(whole / "pipeline"), atol=1e-5, rtol=0)


def test_an_array_over_mitigations(slurm: Cluster, tiny_pipeline: Path, tmp_path: Path) -> None:
    """A folder for each; a task without a mitigation says how many there are."""
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS[:3]))
    job = slurm.sbatch(
        *SMALL, "--time=10", "--array=0-2", f"--output={tmp_path}/%a.txt", PREDICT, "none,stp", str(tmp_path),
        "--model.pipeline", str(tiny_pipeline), "--prompts", str(tmp_path / "prompts.txt"),
        "--model.num_inference_steps", "4", "--trainer.accelerator", "cpu",
    )  # fmt: skip
    until(lambda: slurm.show(f"{job}_2")["JobState"] == "FAILED", 120)
    assert "there are only 2 mitigations: give --array=0-1" in (tmp_path / "2.txt").read_text()
    for number, name in enumerate(("none", "stp")):
        slurm.wait(f"{job}_{number}", "COMPLETED")
        rows = pd.read_parquet(tmp_path / name / "samples.parquet")
        assert rows["mitigation"].tolist() == [name] * 3
