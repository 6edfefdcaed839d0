"""CMMD of many images is computed from moments, not from pairs."""

import pytest
import torch

from infer.metrics import distances
from infer.metrics.distances import cmmd

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (0.3, 1.0), (0.0, 3.0)])
def test_the_moments_give_what_the_pairs_give(
    shift: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets as near as two halves of one, moved, and of another spread."""
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(400, 16, generator=random, dtype=torch.double) for _ in range(2))
    x = x * torch.linspace(1, scale, 16) + shift
    pairs = cmmd(x, y)
    monkeypatch.setattr(distances, "PAIRS", 0)
    assert cmmd(x, y) == pytest.approx(pairs, rel=2e-4, abs=2e-6) and cmmd(x, y) != pairs
