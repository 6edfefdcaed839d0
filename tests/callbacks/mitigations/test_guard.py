"""GUARD: spikes found by a plain loop, attenuation of none is plain guidance, and the formula."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.mitigations.attention.attenuation import attend_attenuated, attenuated, spikes
from callbacks.mitigations.attention.guard import GUARD, without_alike
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.loop import denoise
from tests.callbacks.mitigations.peer_runs import SCALE, STEPS, assert_rows_are_independent, run
from tests.infer.denoising.loops import by_hand, inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_spikes_by_a_plain_loop() -> None:
    """Per sample and head; the first token neither counts nor is one."""
    logits = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    logits[0, 0, :, 0] = 100
    found, weaker = spikes(logits, 0.5), attenuated(logits, 0.5, 0.3)
    for row in range(2):
        for head in range(3):
            highest = [logits[row, head, :, token].max().item() for token in range(7)]
            mean = sum(highest[1:]) / 6
            deviation = math.sqrt(sum((m - mean) ** 2 for m in highest[1:]) / 5)
            for token in range(7):
                spike = token > 0 and (highest[token] - mean) / deviation > 0.5
                assert found[row, head, token] == spike
                factor = 0.3 if spike else 1.0
                assert torch.allclose(weaker[row, head, :, token], factor * logits[row, head, :, token])
    assert 0 < found.sum() < found.numel()


def test_nearly_parallel_ways_lose_their_common_part() -> None:
    random = torch.Generator().manual_seed(0)
    m = torch.randn(4, 3, 5, 5, generator=random)
    other = torch.randn(4, 3, 5, 5, generator=random)
    g = torch.stack([0.9 * m[0], m[1] + 0.1 * other[1], 5 * m[2], other[3]])
    result = without_alike(g, m)
    assert result[0].abs().max() < 1e-5  # parallel: nothing is left
    assert abs((result[1] * m[1]).sum()) < 1e-3 and result[1].abs().max() > 0.05
    assert torch.allclose(result[2], 3 * m[2], atol=1e-4)  # at most 2 m is taken
    assert torch.equal(result[3], g[3])  # not alike: as it is
    half = without_alike(g.half(), m.half())
    assert torch.allclose(half.float(), result, atol=2e-2)


def test_attenuation_of_none_without_repulsion_is_ordinary_guidance(pipe) -> None:
    plain = run(pipe)
    for rule in (GUARD(0.0, attenuation=1.0, orthogonal=False), GUARD(0.0, threshold=1e6, orthogonal=False)):
        assert torch.allclose(run(pipe, rule).latents, plain.latents, atol=1e-4)


@pytest.mark.parametrize("blocks", ["early", "all"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_formula(unet: torch.nn.Module, prediction: str, blocks: str) -> None:
    """With the attenuated prediction from a UNet whose processors attenuate always."""
    given, scheduler, former = inputs(3), scheduler_of(prediction=prediction), unet.attn_processors
    starts = ("down", "mid") if blocks == "early" else ("down", "mid", "up")
    names = [name for name in former if "attn2" in name and name.startswith(starts)]

    def attend(attn: Any, x: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        return attend_attenuated(attn, x, encoder_hidden_states, threshold=0.1, scale=0.3)

    scheduler.set_timesteps(STEPS)

    def attenuated_prediction(x: Tensor, t: float) -> Tensor:
        unet.set_attn_processor(former | dict.fromkeys(names, attend))
        a = unet(x, t, encoder_hidden_states=given[2], return_dict=False)[0]
        unet.set_attn_processor(dict(former))
        return a

    latents: list[Tensor] = []

    def network(x: Tensor, t: Tensor, **options) -> tuple[Tensor]:
        latents.append(x)
        return unet(x, t, **options)

    def guide(index: int, t: float, u: Tensor, c: Tensor) -> Tensor:
        g = without_alike(attenuated_prediction(latents[-1], t) - u, c - u)
        return u + SCALE * g - 2.0 * math.cos(math.pi * index / (2 * STEPS)) * (c - u)

    expected = by_hand(network, scheduler, given, STEPS, guide)
    result = denoise(unet, scheduler, *given, SCALE, STEPS, [GUARD(blocks=blocks)])
    assert torch.allclose(result.latents, expected[-1], atol=1e-3, rtol=1e-3)
    assert result.nfe.tolist() == [3 * STEPS] * 3


def test_rows_are_independent_and_processors_go_back(pipe) -> None:
    before = pipe.unet.attn_processors
    assert_rows_are_independent(pipe, lambda: [GUARD()])
    assert pipe.unet.attn_processors == before


def test_before_a_transition_it_does_nothing(pipe) -> None:
    result = run(pipe, StaticTransition(500), GUARD())
    assert result.nfe.tolist() == [5 + 3 * 5] * 3 and result.guidance_scale[0, :5].eq(0).all()
