"""The transitions as guiders: tiny modular pipelines of SDXL, SD3 and FLUX.2 against written-out loops."""

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor

from callbacks.adapters.guiders import DynamicTransitionGuidance, StaticTransitionGuidance
from tests.callbacks.adapters.families import MODULAR, PROMPTS, Family, built

pytestmark = pytest.mark.usefixtures("one_thread")
FULL = 5.0


@pytest.fixture(params=list(MODULAR))
def family(request: pytest.FixtureRequest) -> Family:
    return built(request.param)


class Rows:
    """Counts the rows that a pipeline's model evaluates, call by call."""

    def __init__(self, family: Family):
        self.module = getattr(family.pipe, family.denoiser)
        self.calls: list[int] = []

    def __enter__(self) -> "Rows":
        self.hook = self.module.register_forward_hook(
            lambda module, arguments, output: self.calls.append(len(output[0]))
        )
        return self

    def __exit__(self, *_) -> None:
        self.hook.remove()


class Published:
    """The dynamic transition, written out: d falls, then rises; from that step on the full scale."""

    def __init__(self, before: float, space: str, prediction_type: str):
        self.before, self.curves = before, []
        self.by_alpha = space == "epsilon" and prediction_type == "flow_prediction"
        self.fired_at: list[int | None] = [None, None]

    def __call__(self, index: int, timestep: float, unconditional: Tensor, conditional: Tensor) -> Tensor:
        d = ((conditional - unconditional) ** 2).flatten(1).mean(1).sqrt()
        self.curves.append(d * (1 - timestep / 1000) if self.by_alpha else d)
        for row in range(len(d)):
            if index >= 2 and self.fired_at[row] is None:
                before, middle, now = (float(curve[row]) for curve in self.curves[-3:])
                if before > middle and now > middle:
                    self.fired_at[row] = index
        return torch.tensor([self.before if fired is None else FULL for fired in self.fired_at[: len(d)]])


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def between(timesteps: Tensor, index: int) -> float:
    """A transition that the step `index` is the first to be below."""
    return float(timesteps[index - 1] + timesteps[index]) / 2


def timesteps_of(family: Family, steps: int) -> Tensor:
    return family.run(ClassifierFreeGuidance(guidance_scale=FULL), steps)[1].get("timesteps")


def test_the_loop_written_out_is_the_pipeline_with_its_own_guider(family: Family):
    latents, state = family.run(ClassifierFreeGuidance(guidance_scale=FULL))
    noise = family.noise([0, 1])
    assert close(family.written_out(state, noise, lambda *_: FULL), latents)
    assert not close(family.written_out(state, noise, lambda *_: 1.0), latents)
    assert state.get("images").shape == (2, 3, 16, 16)


@pytest.mark.parametrize(("before", "rows"), [(0.0, [2, 2]), (1.0, [2, 2]), (-2.0, [2, 2, 2, 2])])
def test_static(family: Family, before: float, rows: list[int]):
    """Two steps before the transition, which cost one evaluation a sample at scale 0 and 1, two otherwise."""
    transition = between(timesteps_of(family, 5), 2)
    guider = StaticTransitionGuidance(FULL, transition, before, prediction_type=family.prediction_type)
    with Rows(family) as counted:
        latents, state = family.run(guider, 5)
    assert counted.calls == rows + [2, 2] * 3
    noise = family.noise([0, 1])
    expected = family.written_out(state, noise, lambda i, t, u, c: before if t > transition else FULL)
    assert close(latents, expected)
    assert not close(latents, family.written_out(state, noise, lambda *_: FULL))
    first_below = float(state.get("timesteps")[2])
    assert guider.transition_timestep.tolist() == pytest.approx([first_below, first_below])


@pytest.mark.parametrize("space", ["epsilon", "model_output"])
@pytest.mark.parametrize("before", [0.0, -2.0])
def test_dynamic(family: Family, before: float, space: str):
    guider = DynamicTransitionGuidance(FULL, before, space, prediction_type=family.prediction_type)
    with Rows(family) as counted:
        latents, state = family.run(guider, 12)
    assert counted.calls == [2] * 24
    rule = Published(before, space, family.prediction_type)
    assert close(latents, family.written_out(state, family.noise([0, 1]), rule))
    if not rule.by_alpha:  # 0 at the first step of a flow model, its differences may only grow
        assert any(index is not None for index in rule.fired_at)
    expected = [float("nan") if i is None else float(state.get("timesteps")[i]) for i in rule.fired_at]
    assert guider.transition_timestep.tolist() == pytest.approx(expected, nan_ok=True)


def test_rows_decide_independently():
    """A batch of two whose rows fire at different steps is two batches of one."""
    family = built("sd3")
    guider = DynamicTransitionGuidance(FULL, -2.0, "model_output", prediction_type="flow_prediction")
    together, state = family.run(guider, 11)
    fired = guider.transition_timestep.tolist()
    assert [state.get("timesteps").tolist().index(t) for t in fired] == [6, 3]  # 2 would be the first chance
    for row in (0, 1):
        alone, _ = family.run(guider, 11, [PROMPTS[row]], family.noise([row]))
        assert close(alone[0], together[row])
        assert guider.transition_timestep.tolist() == [fired[row]]


def test_a_run_with_the_same_guider_is_the_same_run(family: Family):
    """Also after one whose last step evaluated the conditional prediction only: both prompts are embedded."""
    guider = StaticTransitionGuidance(1.0, between(timesteps_of(family, 4), 2), -2.0)
    first, _ = family.run(guider)
    second, state = family.run(guider)
    assert torch.equal(first, second)
    assert state.get("negative_prompt_embeds") is not None


@pytest.mark.parametrize("name", ["sd3", "flux2"])
def test_disabled(name: str):
    """The conditional prediction alone. (The SDXL pipeline enables whatever guider it has.)"""
    family = built(name)
    guider = StaticTransitionGuidance(FULL, enabled=False)
    with Rows(family) as counted:
        latents, state = family.run(guider)
    assert counted.calls == [2] * 4
    assert guider.transition_timestep is None
    if name == "flux2":  # SD3 embeds the negative prompt that it is given
        assert state.get("negative_prompt_embeds") is None
    expected, _ = family.run(ClassifierFreeGuidance(guidance_scale=1.0))
    assert close(latents, expected)
