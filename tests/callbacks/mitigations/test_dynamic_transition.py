"""The dynamic transition without options: on made curves by the rule itself, and once in the loop."""

import math

import pytest
import torch

from callbacks.mitigations.dynamic_transition import DynamicTransition
from infer.denoising.hooks import DenoisingStep
from infer.denoising.loop import denoise
from tests.infer.denoising.loops import by_hand, inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
NEVER = None


def firing(curves: list[list[float]], rule: DynamicTransition, alphas: list[float] | None = None) -> list:
    """The step at which each curve fires (None: never), after a look at the scale of every step."""
    steps, count = len(curves[0]), len(curves)
    timesteps = [900 - 10 * index for index in range(steps)]
    rule.begin(count, torch.device("cpu"))
    applied = []
    for index in range(steps):
        step = DenoisingStep(
            index=index, timestep=timesteps[index], timesteps=timesteps, latents=torch.zeros(count, 1, 1, 2),
            alpha=alphas[index] if alphas else 1.0, sigma=0.0,
            prediction_type="v_prediction" if alphas else "epsilon", guidance_scale=7.5,
        )  # fmt: skip
        step.unconditional = torch.ones(count, 1, 1, 2)
        step.conditional = 1 + torch.tensor([curve[index] for curve in curves]).view(-1, 1, 1, 1).expand(
            count, 1, 1, 2
        )
        assert torch.stack(rule.needs(step, torch.full((count,), 7.5))).all()
        rule.observe(step)
        applied.append(rule.guidance_scale(step, torch.full((count,), 7.5)))
    found = []
    for row, timestep in zip(torch.stack(applied, 1).tolist(), rule.transition_timestep(), strict=True):
        first = row.index(7.5) if 7.5 in row else steps
        assert row == [rule.guidance_before] * first + [7.5] * (steps - first), "once fired, always"
        assert math.isnan(timestep) if first == steps else timestep == timesteps[first]
        found.append(first if first < steps else NEVER)
    return found


CURVES = {
    "a V: one step after its minimum": ([5, 4, 3, 4, 5, 6], 3),
    "several minima: the first": ([5, 3, 4, 1, 2, 3], 2),
    "the earliest there can be": ([2, 1, 2, 3, 4, 5], 2),
    "rising before it falls": ([1, 3, 2, 4, 4, 4], 3),
    "a minimum that the last step shows": ([6, 5, 4, 3, 2, 3], 5),
    "a minimum at the last step": ([6, 5, 4, 3, 2, 1], NEVER),
    "rising": ([1, 2, 3, 4, 5, 6], NEVER),
    "flat": ([2, 2, 2, 2, 2, 2], NEVER),
    "a plateau at the bottom": ([3, 2, 1, 1, 2, 3], NEVER),
    "a maximum": ([1, 2, 3, 2, 1, 0.5], NEVER),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_first_local_minimum_of_a_curve(name: str) -> None:
    curve, expected = CURVES[name]
    assert firing([curve], DynamicTransition()) == [expected]


def test_each_sample_of_a_batch_has_its_own_transition() -> None:
    rule = DynamicTransition(guidance_before=-7.5)
    curves, expected = zip(*CURVES.values(), strict=True)
    assert firing(list(curves), rule) == list(expected)
    assert firing([[1, 2, 3, 4]], rule) == [NEVER]  # and nothing of a batch stays for the next


def test_epsilon_and_v_space_can_disagree() -> None:
    """The outputs' difference has a minimum; times an alpha that grows it rises all along."""
    curves, alphas = [[4.0, 3.0, 2.5, 3.0]], [0.1, 0.5, 0.9, 1.0]
    assert firing(curves, DynamicTransition(watch="model_output"), alphas) == [3]
    assert firing(curves, DynamicTransition(watch="epsilon"), alphas) == [NEVER]


def test_dynamic_transition_in_the_loop(unet: torch.nn.Module) -> None:
    """Its scales are those its own trace asks for, and its latents those of a hand-written loop at them."""
    given, v = inputs(6), {"prediction": "v_prediction"}
    made = denoise(unet, scheduler_of(**v), *given, 7.5, 20, [DynamicTransition(-2.0)])
    fired = firing(made.difference_rms.tolist(), DynamicTransition(-2.0))
    assert any(step is not NEVER for step in fired) and len(set(fired)) > 1
    expected = [[-2.0] * (20 if f is NEVER else f) + [7.5] * (0 if f is NEVER else 20 - f) for f in fired]
    assert made.guidance_scale.tolist() == expected
    scale = dict(zip(made.timesteps[0].tolist(), made.guidance_scale.T.view(20, 6, 1, 1, 1), strict=True))
    reference = by_hand(unet, scheduler_of(**v), given, 20, lambda _, t, u, c: u + scale[t] * (c - u))
    assert torch.allclose(made.latents, reference[-1], atol=1e-3)
