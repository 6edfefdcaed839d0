"""Optimizers by name: their class, state and updates, checkpoints of them, and what is refused."""

import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.infer.models.model_files import assert_equal, failure
from train.optimizers import make_optimizer

OPTIONS: dict[str, Any] = {"lr": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.1}
LARGE, SMALL = (64, 128), (64, 8)  # with states of 8 bits, and below 4096 entries


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in (LARGE, SMALL)]


def gradients(steps: int, skipped: int = 0) -> Iterator[list[torch.Tensor]]:
    """Of seldom changing signs, as in training."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        drawn = [1 + 0.3 * torch.randn(shape, generator=generator) for shape in (LARGE, SMALL)]
        if step >= skipped:
            yield drawn


def advance(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], each: Any) -> None:
    for drawn in each:
        for weight, gradient in zip(weights, drawn, strict=True):
            weight.grad = gradient
        optimizer.step()


def adamw(steps: int) -> list[nn.Parameter]:
    """The weights after PyTorch's own optimizer."""
    weights = parameters()
    advance(torch.optim.AdamW(weights, **OPTIONS), weights, gradients(steps))
    return weights


def test_adamw_is_pytorchs_fused_one():
    weights = parameters()
    optimizer = make_optimizer("adamw", iter(weights), **OPTIONS)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"] is True
    assert {key: optimizer.param_groups[0][key] for key in OPTIONS} == OPTIONS


def test_adamw8bit_is_adamw_with_small_states():
    """Rounded states move no weight by more than a tenth of the way; small tensors' states are in 32 bits."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weights, start = parameters(), parameters()
    optimizer = make_optimizer("adamw8bit", iter(weights), **OPTIONS)
    assert type(optimizer) is bitsandbytes.optim.AdamW8bit
    assert {key: optimizer.param_groups[0][key] for key in OPTIONS} == OPTIONS
    advance(optimizer, weights, gradients(20))
    kinds = [[optimizer.state[weight][key].dtype for key in ("state1", "state2")] for weight in weights]
    assert kinds == [[torch.uint8] * 2, [torch.float32] * 2]
    large, small = adamw(20)
    torch.testing.assert_close(weights[1], small, rtol=1e-5, atol=1e-5)
    way = (large - start[0]).abs().mean()
    difference = (weights[0] - large).abs()
    assert way > 15 * OPTIONS["lr"] and 1e-6 < difference.max() < 0.1 * way


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_an_optimizer_continues_from_its_checkpoint(name: str):
    """Loaded as weights only, as fit does, it ends where it would have."""
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    whole, half, other = parameters(), parameters(), parameters()
    advance(make_optimizer(name, whole, **OPTIONS), whole, gradients(6))
    first = make_optimizer(name, half, **OPTIONS)
    advance(first, half, gradients(3))
    file = io.BytesIO()
    torch.save({"weights": half, "optimizer": first.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    for weight, saved in zip(other, checkpoint["weights"], strict=True):
        weight.data = saved.data
    second = make_optimizer(name, other, lr=1.0, betas=(0.5, 0.5), weight_decay=0.0)
    second.load_state_dict(checkpoint["optimizer"])
    advance(second, other, gradients(6, skipped=3))
    assert_equal(dict(enumerate(other)), dict(enumerate(whole)), rtol=0, atol=0)


def test_what_adamw8bit_cannot_train_is_refused():
    """Before the first step: a device without kernels."""
    pytest.importorskip("bitsandbytes")
    elsewhere = [*parameters(), nn.Parameter(torch.empty(4, device="meta"))]
    failure(
        ValueError, "does not run on meta, only on cpu, cuda, xpu: give adamw", make_optimizer,
        "adamw8bit", elsewhere, **OPTIONS,
    )  # fmt: skip


def test_a_missing_bitsandbytes_is_named(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    failure(
        ValueError, "pip install bitsandbytes, or give adamw", make_optimizer, "adamw8bit", parameters(),
        **OPTIONS,
    )  # fmt: skip
