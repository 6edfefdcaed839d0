"""torchrun on two "nodes" of this machine with two processes each.

python -m pytest -m slow tests/train/test_torchrun.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.conftest import CAPTIONS, ROOT
from tests.infer.predict.runs import assert_same_run, command
from tests.processes import free_ports
from tests.train import fits
from tests.train.fits import callback, run_process, short, unet

pytestmark = pytest.mark.slow
world = fits.world  # a fixture
TWO = ("--trainer.num_nodes", "2", "--trainer.devices", "2")


def torchrun(port: int, *args: str, seconds: int = 60, processes: int = 2) -> subprocess.Popen:
    """One node's launcher. Its partners have so many seconds to come."""
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(processes),
        "--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", f"127.0.0.1:{port}",
        "--rdzv-conf", f"join_timeout={seconds}", "-m",
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, *args], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def two_nodes(*args: str, code: int = 0) -> str:
    """What both print."""
    [port] = free_ports(1)
    nodes = [torchrun(port, *args, seconds=200) for _ in range(2)]
    printed = [node.communicate(timeout=400)[0] for node in nodes]
    assert [bool(node.returncode) for node in nodes] == [bool(code)] * 2, "\n".join(printed)
    return "\n".join(printed)


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """A fit of one process, with a batch four times as large."""
    run_process(short(world, world / "whole", trainer__max_steps=4, data__batch_size=4))
    return world / "whole"


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_a_fit_is_that_of_one_process(strategy: str, world: Path, whole: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", {"trainer__max_steps": 4, "data__batch_size": 1}
    printed = two_nodes("train", *short(world, run, **settings), *TWO, "--trainer.strategy", strategy)
    assert printed.count("model after 4 steps") == 1
    torch.testing.assert_close(unet(run / "pipeline"), unet(whole / "pipeline"), atol=1e-5, rtol=0)
    pd.testing.assert_frame_equal(*(pd.read_parquet(out / "exposures.parquet") for out in (run, whole)))


def test_a_prediction_is_that_of_one_process(tiny_pipeline: Path, predict, tmp_path: Path) -> None:
    """Also where a rank has nothing to do: three images on four."""
    prompts = [word for text in CAPTIONS[:3] for word in ("--prompt", text)]
    two_nodes("infer", *command(tiny_pipeline, tmp_path / "four", 4, *prompts), *TWO)
    assert_same_run(tmp_path / "four", predict(*prompts), tolerance=1)


def test_a_rank_that_dies_ends_all(world: Path, tmp_path: Path) -> None:
    """The launcher names it; the same lines go on."""
    settings = {"trainer__max_steps": 4, "data__batch_size": 1, "checkpoint_every": 2}
    die = [callback("Die", step=3, rank=3)]
    ddp = ("train", *short(world, tmp_path / "run", **settings, trainer__callbacks=die), *TWO)
    printed = two_nodes(*ddp, "--trainer.strategy", "ddp", code=1)
    assert "Signal 9 (SIGKILL)" in printed and "[rank" not in printed.replace("[rank: ", "")
    assert printed.count("error: another process of this run ended") <= 1  # none where it is stopped before
    again = ("train", *short(world, tmp_path / "run", **settings), *TWO, "--trainer.strategy", "ddp")
    assert "continuing from" in two_nodes(*again)


def test_a_node_whose_partner_does_not_come() -> None:
    [port] = free_ports(1)
    node = torchrun(port, "infer", "--help", seconds=3, processes=1)
    assert "RendezvousTimeoutError" in node.communicate(timeout=120)[0].splitlines()[-1]
    assert node.returncode
