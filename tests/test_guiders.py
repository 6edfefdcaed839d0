"""The transitions as guiders: tiny modular pipelines of SDXL, SD3 and FLUX.2 against written-out loops."""

import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import ModularPipeline
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec
from torch import Tensor

from callbacks.dynamic_transition import DynamicTransition
from callbacks.guiders import DynamicTransitionGuidance, StaticTransitionGuidance, TransitionGuidance
from callbacks.static_transition import StaticTransition
from tests.families import MODULAR, PROMPTS, Family, classic_sdxl

pytestmark = pytest.mark.usefixtures("one_thread")
FULL = 5.0
BUILT: dict[str, Family] = {}


@pytest.fixture(params=list(MODULAR))
def family(request: pytest.FixtureRequest) -> Family:
    return built(request.param)


def built(name: str) -> Family:
    if name not in BUILT:
        BUILT[name] = MODULAR[name]()
    return BUILT[name]


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


def test_classic_and_modular_sdxl_are_the_same():
    family, noise = built("sdxl"), built("sdxl").noise([0, 1])
    _, state = family.run(ClassifierFreeGuidance(guidance_scale=FULL))
    images = classic_sdxl()(
        PROMPTS,
        height=16,
        width=16,
        num_inference_steps=4,
        guidance_scale=FULL,
        latents=noise,
        output_type="pt",
    ).images
    assert close(images, state.get("images"))


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
    together, _ = family.run(guider, 12)
    fired = guider.transition_timestep.tolist()
    assert fired[0] != fired[1]
    for row in (0, 1):
        alone, _ = family.run(guider, 12, [PROMPTS[row]], family.noise([row]))
        assert close(alone[0], together[row])
        assert guider.transition_timestep.tolist() == [fired[row]]


def drive(
    guider: TransitionGuidance,
    curves: Tensor,
    timesteps: list[float],
    stop: int | None = None,
    steps: int | None = None,
) -> Iterator[tuple[list[str], Tensor | None]]:
    """As a pipeline does: of each step what it evaluated and the scales (where it evaluated both).

    The unconditional prediction is 0 and the conditional one the curves' value, (B, steps), in every entry.
    """
    embeddings = {"text": (torch.ones(len(curves), 3), torch.zeros(len(curves), 3))}
    for index, timestep in enumerate(timesteps[:stop]):
        guider.set_state(index, steps or len(timesteps), torch.tensor(timestep))
        batches = guider.prepare_inputs(embeddings)
        for batch in batches:
            guider.prepare_models(None)
            assert guider.is_conditional == bool(batch.text.any())
            value = curves[:, index] if guider.is_conditional else torch.zeros(len(curves))
            batch.noise_pred = value.view(-1, 1, 1, 1).expand(-1, 2, 4, 4)
            guider.cleanup_models(None)
        output = guider(batches)[0]
        names = [getattr(batch, guider._identifier_key) for batch in batches]
        yield names, output[:, 0, 0, 0] / curves[:, index] if len(names) == 2 else None


CURVES = torch.tensor(
    [
        [3.0, 2.0, 2.5, 1.0, 2.0, 1.0],  # fires at 2, once
        [5.0, 4.0, 3.0, 2.0, 2.5, 2.6],  # at 4
        [5.0, 4.0, 3.0, 2.0, 1.0, 0.5],  # never
        [1.0, 2.0, 3.0, 3.0, 4.0, 5.0],  # never: it does not fall
    ]
)
TIMESTEPS = [999.0, 800.0, 600.0, 400.0, 200.0, 1.0]


def test_dynamic_follows_the_curve_of_each_row():
    guider = DynamicTransitionGuidance(FULL, -2.0)
    scales = torch.stack([scale for _, scale in drive(guider, CURVES, TIMESTEPS)], 1)
    for row, fires_at in enumerate([2, 4, 6, 6]):
        assert scales[row].tolist() == pytest.approx([-2.0] * fires_at + [FULL] * (6 - fires_at))
    nan = float("nan")
    assert guider.transition_timestep.tolist() == pytest.approx([600.0, 200.0, nan, nan], nan_ok=True)
    assert "transition_timestep: tensor([600." in repr(guider)


def test_noise_of_a_flow_model_is_weighed_by_alpha():
    """eps_c - eps_u = (1 - sigma) (v_c - v_u): a curve that falls slower than alpha grows does not fall."""
    curve = torch.tensor([[3.0, 2.0, 1.9, 1.8, 1.7, 2.0]])
    fired = {}
    for watch in ("epsilon", "model_output"):
        guider = DynamicTransitionGuidance(FULL, watch=watch, prediction_type="flow_prediction")
        list(drive(guider, curve, TIMESTEPS))
        fired[watch] = guider.transition_timestep.item()
    assert fired["model_output"] == 1.0
    assert fired["epsilon"] != fired["epsilon"]  # never


def test_a_run_starts_afresh():
    guider = DynamicTransitionGuidance(FULL, -2.0)
    first = [scale for _, scale in drive(guider, CURVES, TIMESTEPS)]
    second = [scale for _, scale in drive(guider, CURVES, TIMESTEPS)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    list(drive(guider, CURVES, TIMESTEPS, stop=3))  # interrupted
    third = [scale for _, scale in drive(guider, CURVES[:2], TIMESTEPS)]  # of another size
    assert all(torch.equal(a[:2], b) for a, b in zip(first, third, strict=True))


def test_a_run_with_the_same_guider_is_the_same_run(family: Family):
    """Also after one whose last step evaluated the conditional prediction only: both prompts are embedded."""
    guider = StaticTransitionGuidance(1.0, between(timesteps_of(family, 4), 2), -2.0)
    first, _ = family.run(guider)
    second, state = family.run(guider)
    assert torch.equal(first, second)
    assert state.get("negative_prompt_embeds") is not None


def test_timesteps_from_1_to_0():
    guider = StaticTransitionGuidance(FULL, 500)
    evaluated = [names for names, _ in drive(guider, CURVES, [1.0, 0.8, 0.6, 0.4, 0.2, 0.1])]
    assert evaluated == [["pred_uncond"]] * 3 + [["pred_cond", "pred_uncond"]] * 3
    assert guider.transition_timestep.tolist() == pytest.approx([400.0] * 4)


def test_a_solver_that_evaluates_timesteps_twice():
    """Heun of three steps: no warning at the third call, and each timestep counts once."""
    doubled = [999.0, 700.0, 700.0, 400.0, 400.0]
    static, dynamic = StaticTransitionGuidance(FULL, 500), DynamicTransitionGuidance(FULL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluated = [names for names, _ in drive(static, CURVES, doubled, steps=3)]
        assert evaluated == [["pred_uncond"]] * 3 + [["pred_cond", "pred_uncond"]] * 2
        list(drive(dynamic, CURVES, doubled, steps=3))
    nan = float("nan")  # of 3, 2, 1 and 5, 4, 2 and 5, 4, 2 and 1, 2, 3 none has a minimum
    assert dynamic.transition_timestep.tolist() == pytest.approx([nan] * 4, nan_ok=True)


def test_gate_and_ramp():
    """Options of the rule: a sample whose first difference is small gets ordinary guidance from the start."""
    guider = StaticTransitionGuidance(FULL, 600, 0.0, gate=4.0, ramp_timesteps=400)
    steps = list(drive(guider, CURVES[:2], TIMESTEPS))
    assert [len(names) for names, _ in steps] == [2] * 6  # the gated row needs both
    gated, held = torch.stack([scale for _, scale in steps], 1)
    assert gated.tolist() == pytest.approx([FULL] * 6)
    assert held.tolist() == pytest.approx([0, 0, 0, FULL / 2, FULL, FULL])

    guider = StaticTransitionGuidance(FULL, 500, 0.0, gate=0.5)  # nobody
    assert [len(names) for names, _ in drive(guider, CURVES, TIMESTEPS)] == [2, 1, 1, 2, 2, 2]


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


def test_fields_of_a_block_state_and_lists():
    """As pipelines of Wan and Z-Image do: fields by name, embeddings of unequal lengths in lists."""
    from diffusers.modular_pipelines.modular_pipeline import BlockState

    state = BlockState(
        prompt_embeds=[torch.ones(4, 3), torch.ones(5, 3)],
        negative_prompt_embeds=[torch.zeros(1, 3)] * 2,
        n=3,
    )
    fields = {"image": "missing", "n": "n", "text": ("prompt_embeds", "negative_prompt_embeds")}
    guider = StaticTransitionGuidance(FULL, 500)
    for index, timestep in enumerate([999, 1]):
        guider.set_state(index, 2, torch.tensor(timestep))
        batches = guider.prepare_inputs_from_block_state(state, fields)
        assert all(batch.n == 3 for batch in batches)
        for batch in batches:
            batch.noise_pred = torch.stack([text.mean() for text in batch.text]).view(2, 1, 1, 1).half()
        output = guider(batches)
        assert output.pred.dtype == torch.half
        assert output.pred.flatten().tolist() == [0.0 if index == 0 else FULL] * 2


@pytest.mark.parametrize(
    "guider",
    [
        StaticTransitionGuidance(3.0, 650, -2.0, ramp_timesteps=100),
        DynamicTransitionGuidance(3.0, -7.5, "model_output", prediction_type="v_prediction", smoothing=2),
    ],
)
def test_saved_and_loaded(guider: TransitionGuidance, tmp_path):
    guider.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "guider_config.json").read_text())
    assert {"guidance_scale", "prediction_type", *inspect.signature(guider.rule_class).parameters} < set(
        saved
    )
    loaded = type(guider).from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in saved} == {name: guider.config[name] for name in saved}
    assert loaded.rule.identity() == guider.rule.identity()
    expected = [scale for _, scale in drive(guider, CURVES, TIMESTEPS)]
    assert all(
        torch.equal(a, b) for a, (_, b) in zip(expected, drive(loaded, CURVES, TIMESTEPS), strict=True)
    )
    changed = loaded.new(guidance_before=1.0)
    assert (changed.rule.guidance_before, changed.guidance_scale) == (1.0, 3.0)


def test_rule_arguments_and_defaults_are_the_rules_own():
    for guider, rule in (
        (StaticTransitionGuidance, StaticTransition),
        (DynamicTransitionGuidance, DynamicTransition),
    ):
        assert guider().rule.identity() == rule().identity()
        parameters = dict(inspect.signature(guider).parameters)
        assert all(parameters[name] == value for name, value in inspect.signature(rule).parameters.items())


def test_saved_with_a_pipeline(tmp_path):
    """A guider that was loaded from a folder is in the pipeline's index; load_components brings it back."""
    family = built("sdxl")
    StaticTransitionGuidance(FULL, 600, -2.0).save_pretrained(tmp_path / "guider")
    spec = ComponentSpec(
        "guider", StaticTransitionGuidance, pretrained_model_name_or_path=str(tmp_path), subfolder="guider"
    )
    expected, _ = family.run(spec.load())
    family.pipe.save_pretrained(str(tmp_path / "pipeline"), overwrite_modular_index=True)

    pipe = ModularPipeline.from_pretrained(str(tmp_path / "pipeline"))
    pipe.load_components()
    assert type(pipe.guider) is StaticTransitionGuidance
    assert pipe.guider.rule.identity() == StaticTransition(600, -2.0).identity()


def wrong(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as error:
        call()
    return str(error.value)


def test_wrong_options():
    flow = {"prediction_type": "flow_prediction"}
    assert "epsilon, v_prediction, flow_prediction" in wrong(
        lambda: StaticTransitionGuidance(prediction_type="sample")
    )
    v = {"prediction_type": "v_prediction"}
    assert 'use watch="model_output"' in wrong(lambda: DynamicTransitionGuidance(**v))
    DynamicTransitionGuidance(watch="model_output", **v)
    StaticTransitionGuidance(**v)
    assert "gate" in wrong(lambda: StaticTransitionGuidance(gate=0.1, **v))
    assert "gate" in wrong(lambda: DynamicTransitionGuidance(watch="model_output", gate=0.1, **v))
    assert "restart_solver" in wrong(lambda: StaticTransitionGuidance(restart_solver=True, **flow))
    assert "steps_after" in wrong(lambda: DynamicTransitionGuidance(steps_after=200, **flow))
    assert "-1" in wrong(lambda: StaticTransitionGuidance(timestep=-1))
    with pytest.raises(TypeError, match="start"):
        StaticTransitionGuidance(start=0.2)


def test_a_rule_that_cannot_take_effect():
    run = [torch.tensor(999), 10]
    for guider, steps, problem in (
        (StaticTransitionGuidance(timestep=999), 10, "never hold guidance back"),
        (StaticTransitionGuidance(FULL, guidance_before=FULL), 10, "do nothing"),
        (DynamicTransitionGuidance(), 2, "at least 3"),
    ):
        guider.set_state(0, steps, run[0])
        assert problem in wrong(lambda: guider.prepare_inputs({"text": (torch.ones(1, 2), torch.ones(1, 2))}))  # noqa: B023


def test_a_transition_that_no_step_reached():
    """Known at the last step only: a guider is told one timestep at a time."""
    family = built("flux2")
    with pytest.warns(UserWarning, match="never give guidance"):
        family.run(StaticTransitionGuidance(FULL, 500), 4)  # its last timestep is 700


def test_no_unconditional_input():
    """SD3 without a negative prompt: classifier-free guidance would silently be none."""
    family = built("sd3")
    guider = StaticTransitionGuidance(FULL, 800, prediction_type="flow_prediction")
    options = family.options
    family.options = {name: value for name, value in options.items() if name != "negative_prompt"}
    try:
        assert "negative_prompt" in wrong(lambda: family.run(guider))
    finally:
        family.options = options
    guider.set_state(0, 10, torch.tensor(999))
    assert "negative_prompt" in wrong(lambda: guider.prepare_inputs({"text": (torch.ones(1, 2), None)}))


def test_inputs_of_another_batch_size():
    guider = StaticTransitionGuidance(FULL, 500)
    guider.set_state(0, 10, torch.tensor(999))
    (batch,) = guider.prepare_inputs({"text": (torch.ones(1, 2), torch.ones(1, 2))})
    batch.noise_pred = torch.zeros(2, 1, 4, 4)
    assert "2 predictions from inputs of 1" in wrong(lambda: guider([batch]))
