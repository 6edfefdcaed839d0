"""What a training logs of its loss, and that a broken one leaves nothing broken behind."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks.finite import Finite, finite
from callbacks.loss_bins import LossBins
from tests.train import fits
from tests.train.fits import ACCUMULATED, STEPS, error_line, full, interrupt, poison, spy
from train.__main__ import main

world, whole = fits.world, fits.whole  # fixtures


def test_the_loss_by_timestep_is_the_mean_since_the_last_log(world: Path, tmp_path: Path) -> None:
    """Of accumulated batches too, and with the steps before an interruption; unweighted, in uneven bins."""
    run, cut, seen = tmp_path / "run", tmp_path / "cut", tmp_path / "seen"
    settings = {
        "trainer__log_every_n_steps": 3,
        "model__min_snr_gamma": 5,
        "model__noise_offset": 0.1,
        "loss_bins__count": 3,
    }
    assert main(full(world, run, trainer__callbacks=[spy(seen)], **settings)) == 0
    metrics = pd.read_csv(run / "metrics.csv").set_index("step")
    for step in (2, 5):
        batches = range((step - 2) * ACCUMULATED, (step + 1) * ACCUMULATED)
        kept = [torch.load(seen / f"0-{batch}.pt") for batch in batches]
        errors, timesteps = (torch.cat([batch[name] for batch in kept]) for name in ("errors", "timesteps"))
        means = []
        for first, end in ((0, 334), (334, 667), (667, 1000)):
            inside = (timesteps >= first) & (timesteps < end)
            means.append(metrics[f"loss_t{first}_{end}"][step])
            expected = errors[inside].mean().item() if inside.any() else np.nan
            assert means[-1] == pytest.approx(expected, rel=1e-4, nan_ok=True)
        assert np.isfinite(means).any()
    assert "loss_t0_334" in metrics and metrics["loss_t0_334"].notna().sum() <= 2

    interrupt(full(world, cut, **settings), 5)  # after the checkpoint of step 4
    assert main(full(world, cut, **settings)) == 0
    fits.assert_same_run(run, cut)


def test_a_broken_run_continues_from_before(whole: Path, world: Path, capsys: pytest.CaptureFixture) -> None:
    """One line and exit code 1. The next start ends as if nothing had been."""
    out = world / "broken"
    line = error_line(full(world, out, trainer__callbacks=[poison(5)]), capsys)
    assert all(
        words in line for words in ("broke in step 5", "learning rate", f"{out}/checkpoints/last.ckpt")
    )
    checkpoint = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    assert not (out / "pipeline").exists()

    assert main(full(world, out)) == 0
    fits.assert_same_run(whole, out)


CASES = {  # what breaks, the step that the error names, and the step of the last checkpoint
    "a loss, noticed before the next checkpoint": (poison(5), 5, 4),
    "weights in the step of a checkpoint": (poison(4, after=True), 4, 2),
    "weights in the last step": (poison(STEPS, after=True), STEPS, STEPS - 2),
    "the first step": (poison(1), 1, None),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_broken_is_kept(
    case: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    breaks, step, kept = CASES[case]
    out = tmp_path / "run"
    settings = {
        "trainer__callbacks": [breaks],
        "trainer__log_every_n_steps": 100,
        "monitor__every_n_steps": 99,
    }
    assert f"broke in step {step}:" in error_line(full(world, out, **settings), capsys)
    assert not (out / "pipeline").exists() and not (out / "samples").exists()
    path = out / "checkpoints/last.ckpt"
    assert path.exists() == (kept is not None)
    if kept is not None:
        assert torch.load(path, weights_only=True)["global_step"] == kept


@pytest.mark.parametrize("value, sound", [(1e30, True), (torch.nan, False), (-torch.inf, False)])
def test_weights_are_finite_or_not(value: float, sound: bool) -> None:
    weights = [torch.zeros(3), torch.zeros(2, 2), torch.zeros(3, dtype=torch.half)]
    weights[1][1, 0] = value
    assert finite(weights).item() is sound


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: numbers taken out of tensors, and tensors whose size is in them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ("_local_scalar_dense", "nonzero", "masked_select", "equal")
        self.count += func.overloadpacket.__name__ in names
        return func(*args, **(kwargs or {}))


def test_a_step_that_logs_nothing_does_not_wait_for_the_device() -> None:
    trainer = SimpleNamespace(
        global_step=0, global_rank=0, log_every_n_steps=3, should_stop=False,
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
    )  # fmt: skip
    logged: dict[str, torch.Tensor] = {}
    module = SimpleNamespace(
        device=torch.device("cpu"), noise_scheduler=DDPMScheduler(), log=logged.__setitem__
    )
    callbacks, waited = (Finite(), LossBins()), []
    for callback in callbacks:
        callback.on_train_start(trainer, module)
    given = {"errors": torch.rand(8), "timesteps": torch.randint(0, 1000, (8,)), "loss": torch.rand(())}
    for step in range(1, 7):
        trainer.global_step = step
        with Waits() as waits:
            for callback in callbacks:
                callback.on_train_batch_end(trainer, module, given, {}, step)
        waited.append(waits.count)
    assert waited == [0, 0, 1, 0, 0, 1] and len(logged) == 4
