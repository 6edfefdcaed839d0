"""Guiders step by step, without a pipeline; and their options: saved, loaded, refused."""

import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec
from torch import Tensor

from callbacks.adapters.guiders import DynamicTransitionGuidance, StaticTransitionGuidance, TransitionGuidance
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from tests.callbacks.adapters.families import built

pytestmark = pytest.mark.usefixtures("one_thread")
FULL = 5.0
CURVES = torch.tensor(
    [
        [3.0, 2.0, 2.5, 1.0, 2.0, 1.0],  # fires at 2, once
        [5.0, 4.0, 3.0, 2.0, 2.5, 2.6],  # at 4
        [5.0, 4.0, 3.0, 2.0, 1.0, 0.5],  # never
        [1.0, 2.0, 3.0, 3.0, 4.0, 5.0],  # never: it does not fall
    ]
)
TIMESTEPS = [999.0, 800.0, 600.0, 400.0, 200.0, 1.0]


def drive(
    guider: TransitionGuidance, curves: Tensor, timesteps: list[float], stop: int | None = None,
    steps: int | None = None,
) -> Iterator[tuple[list[str], Tensor | None]]:  # fmt: skip
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


def test_dynamic_follows_the_curve_of_each_row():
    guider = DynamicTransitionGuidance(FULL, -2.0)
    scales = torch.stack([scale for _, scale in drive(guider, CURVES, TIMESTEPS)], 1)
    for row, fires_at in enumerate([2, 4, 6, 6]):
        assert scales[row].tolist() == pytest.approx([-2.0] * fires_at + [FULL] * (6 - fires_at))
    nan = float("nan")
    assert guider.transition_timestep.tolist() == pytest.approx([600.0, 200.0, nan, nan], nan_ok=True)
    assert "transition_timestep: tensor([600." in repr(guider)


def test_public_attributes_before_the_first_step():
    guider = StaticTransitionGuidance(FULL, 500)
    values = {name: getattr(guider, name) for name in dir(guider) if not name.startswith("_")}
    assert (
        values["transition_timestep"] is None
        and values["is_conditional"]
        and "guidance_scale" in repr(guider)
    )


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


def test_gate():
    """Options of the rule: a sample whose first difference is small gets ordinary guidance from the start."""
    guider = StaticTransitionGuidance(FULL, 600, 0.0, gate=4.0)
    steps = list(drive(guider, CURVES[:2], TIMESTEPS))
    assert [len(names) for names, _ in steps] == [2] * 6  # the gated row needs both
    gated, held = torch.stack([scale for _, scale in steps], 1)
    assert gated.tolist() == pytest.approx([FULL] * 6)
    assert held.tolist() == pytest.approx([0, 0, FULL, FULL, FULL, FULL])
    passed, gate = guider.transition_timestep, guider.gated
    assert gate.tolist() == [True, False] and passed.isnan().tolist() == [True, False]

    guider = StaticTransitionGuidance(FULL, 500, 0.0, gate=0.5)  # nobody
    assert [len(names) for names, _ in drive(guider, CURVES, TIMESTEPS)] == [2, 1, 1, 2, 2, 2]


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


@pytest.mark.parametrize("guider", [
    StaticTransitionGuidance(3.0, 650, -2.0),
    DynamicTransitionGuidance(3.0, -7.5, "model_output", prediction_type="v_prediction", smoothing=2),
])  # fmt: skip
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


@pytest.mark.parametrize("loaded", [False, True])
def test_saved_with_a_pipeline(loaded: bool, tmp_path):
    """Built here, or loaded from a folder: load_components brings it back, and the same latents."""
    family, guider = built("sdxl"), StaticTransitionGuidance(FULL, 600, -2.0)
    if loaded:
        guider.save_pretrained(tmp_path / "guider")
        guider = ComponentSpec(
            "guider", StaticTransitionGuidance, pretrained_model_name_or_path=str(tmp_path),
            subfolder="guider",
        ).load()  # fmt: skip
    expected, _ = family.run(guider)
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
    assert "epsilon, v_prediction, flow_prediction" in wrong(
        lambda: StaticTransitionGuidance(prediction_type="sample")
    )
    v = {"prediction_type": "v_prediction"}
    assert 'use watch="model_output"' in wrong(lambda: DynamicTransitionGuidance(**v))
    DynamicTransitionGuidance(watch="model_output", **v)
    StaticTransitionGuidance(**v)
    assert "gate" in wrong(lambda: StaticTransitionGuidance(gate=0.1, **v))
    assert "gate" in wrong(lambda: DynamicTransitionGuidance(watch="model_output", gate=0.1, **v))
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
    """Known at the last step only: a guider gets one timestep at a time."""
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
