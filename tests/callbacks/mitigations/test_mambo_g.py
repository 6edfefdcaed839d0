"""MaMBo-G: the formula, after a transition as well, and as a scale that other rules see."""

import pytest
import torch
from torch import Tensor

from callbacks.mitigations.guidance.mambo_g import MaMBoG
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.loop import denoise
from tests.callbacks.mitigations.peer_runs import SCALE, STEPS, assert_rows_are_independent, run
from tests.infer.denoising.loops import by_hand, inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("transition", [1000, 500])
def test_the_formula(unet: torch.nn.Module, prediction: str, transition: int) -> None:
    given, scheduler, scales = inputs(3), scheduler_of(prediction=prediction), []

    def guide(index: int, t: float, u: Tensor, c: Tensor) -> Tensor:
        if t > transition:
            return u
        d, size = (torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True) for x in (c - u, u))
        scales.append(1 + (SCALE - 1) * torch.exp(-8 * d / size))
        return u + scales[-1] * (c - u)

    expected = by_hand(unet, scheduler, given, STEPS, guide)
    rules = [MaMBoG(), *([StaticTransition(500)] if transition == 500 else [])]
    for order in (1, -1):
        result = denoise(unet, scheduler, *given, SCALE, STEPS, rules[::order])
        assert torch.allclose(result.latents, expected[-1], atol=1e-3, rtol=1e-3)
        assert result.nfe.tolist() == [STEPS + len(scales)] * 3
        traced = result.guidance_scale[:, -len(scales) :]
        assert torch.allclose(traced, torch.cat(scales, 1).flatten(1), rtol=1e-3)


def test_alpha_0_is_ordinary_guidance_and_rows_are_independent(pipe) -> None:
    assert torch.allclose(run(pipe, MaMBoG(0.0)).latents, run(pipe).latents, atol=1e-4)
    assert_rows_are_independent(pipe, lambda: [MaMBoG()])
