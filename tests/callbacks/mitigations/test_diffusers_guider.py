"""Guiders of diffusers as ordinary guidance: formulas written out, after a transition, and refusals."""

import copy
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.guidance.diffusers_guider import DiffusersGuider
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.loop import denoise, prepare
from tests.callbacks.mitigations.peer_runs import SCALE, STEPS, assert_rows_are_independent, run
from tests.infer.denoising.loops import by_hand, inputs, requests, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")


def norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)


def rescaled(u: Tensor, c: Tensor) -> Tensor:
    mix = u + SCALE * (c - u)
    deviations = [x.flatten(1).std(1).view(-1, 1, 1, 1) for x in (c, mix)]
    return (0.7 * deviations[0] / deviations[1] + 0.3) * mix


def zero_star(u: Tensor, c: Tensor) -> Tensor:
    scaled = dot(c, u) / dot(u, u) * u
    return scaled + SCALE * (c - scaled)


def projected() -> Callable[[Tensor, Tensor], Tensor]:
    """APG, which remembers."""
    running = 0

    def guide(u: Tensor, c: Tensor) -> Tensor:
        nonlocal running
        running = (c - u) - 0.5 * running
        d = running * (0.8 / norm(running)).clamp(max=1)
        return u + SCALE * (d - dot(d, c) / dot(c, c) * c)

    return guide


APG = {"adaptive_projected_guidance_momentum": -0.5, "adaptive_projected_guidance_rescale": 0.8, "eta": 0.0}
GUIDERS = {
    "plain": ("ClassifierFreeGuidance", {}, lambda: lambda u, c: u + SCALE * (c - u)),
    "rescale": ("ClassifierFreeGuidance", {"guidance_rescale": 0.7}, lambda: rescaled),
    "cfg_zero": ("ClassifierFreeZeroStarGuidance", {"zero_init_steps": 0}, lambda: zero_star),
    "apg": ("AdaptiveProjectedGuidance", APG, projected),
}  # fmt: skip


@pytest.mark.parametrize("name", GUIDERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_formula(unet: torch.nn.Module, name: str, prediction: str) -> None:
    """On its own, and from a static transition on, with its memory beginning there."""
    guider, options, formula = GUIDERS[name]
    given, scheduler = inputs(3), scheduler_of(prediction=prediction)
    for transition in (1000, 500):
        guide, before = formula(), [StaticTransition(500, 0.0)] if transition == 500 else []
        expected = by_hand(
            unet,
            scheduler,
            given,
            STEPS,
            lambda index, t, u, c, g=guide, s=transition: u if t > s else g(u, c),
        )
        rules = [*before, DiffusersGuider(guider, options)]
        result = denoise(unet, scheduler, *given, SCALE, STEPS, rules)
        assert torch.allclose(result.latents, expected[-1], atol=1e-3, rtol=1e-3)
        assert result.nfe.tolist() == [STEPS + (5 if before else STEPS)] * 3


def test_the_first_step_stands_still(unet: torch.nn.Module) -> None:
    """v = 0: of models that predict noise it is refused."""
    given, scheduler = inputs(2), scheduler_of(prediction="v_prediction")
    expected = by_hand(
        unet, scheduler, given, STEPS, lambda index, t, u, c: 0 * u if index == 0 else zero_star(u, c)
    )
    rule = DiffusersGuider("ClassifierFreeZeroStarGuidance")
    result = denoise(unet, scheduler, *given, SCALE, STEPS, [rule])
    assert torch.allclose(result.latents, expected[-1], atol=1e-4)


@pytest.mark.parametrize("name", ["apg", "tcfg"])
def test_rows_are_independent_also_where_they_pass_at_different_times(pipe, name: str) -> None:
    own = ("TangentialClassifierFreeGuidance", {}) if name == "tcfg" else GUIDERS[name][:2]
    result = assert_rows_are_independent(
        pipe, lambda: [DynamicTransition(watch="model_output", fallback_timestep=301), DiffusersGuider(*own)]
    )
    assert len(set(result.transition_timestep.tolist())) > 1


def test_what_cannot_work_is_refused_in_one_line(pipe) -> None:
    for name in ("SkipLayerGuidance", "MagnitudeAwareGuidance"):
        with pytest.raises(ValueError, match=f"no guider '{name}' of two predictions"):
            DiffusersGuider(name)
    with pytest.raises(
        ValueError, match="AdaptiveProjectedGuidance has no option 'nu'; it takes guidance_scale"
    ):
        DiffusersGuider("AdaptiveProjectedGuidance", {"nu": 1})
    with pytest.raises(ValueError, match="ClassifierFreeGuidance: Expected `start`"):
        DiffusersGuider("ClassifierFreeGuidance", {"start": 2.0}).check([1.0], SCALE)
    if find_spec("kornia") is None:
        with pytest.raises(ValueError, match="FrequencyDecoupledGuidance: .*kornia"):
            DiffusersGuider("FrequencyDecoupledGuidance").check([1.0], SCALE)
    zero = DiffusersGuider("ClassifierFreeZeroStarGuidance")
    zero.check_requests(pipe, requests(1))
    pipe.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ValueError, match="set options.zero_init_steps to 0"):
        zero.check_requests(pipe, requests(1))
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="two mitigations change the combined prediction"):
        prepare(scheduler_of(), SCALE, STEPS, [zero, DiffusersGuider()])


def test_half_precision_gives_the_same_guidance(pipe) -> None:
    """Weights in bfloat16; the guider's norms are taken in single precision."""
    half = copy.copy(pipe)
    half.unet, half.text_encoder = (copy.deepcopy(p).bfloat16() for p in (pipe.unet, pipe.text_encoder))
    single, rounded = (run(each, DiffusersGuider(*GUIDERS["apg"][:2])).latents for each in (pipe, half))
    assert rounded.dtype == torch.bfloat16 and (rounded - single).abs().mean() < 0.05
