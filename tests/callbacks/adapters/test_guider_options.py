"""A guider's options: saved and loaded, the same as its rule's, and refused where they cannot take effect."""

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec

from callbacks.adapters.guiders import DynamicTransitionGuidance, StaticTransitionGuidance, TransitionGuidance
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from tests.callbacks.adapters.families import built
from tests.callbacks.adapters.guider_steps import CURVES, FULL, TIMESTEPS, drive

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "guider",
    [
        StaticTransitionGuidance(3.0, 650, -2.0),
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


@pytest.mark.parametrize("loaded", [False, True])
def test_saved_with_a_pipeline(loaded: bool, tmp_path):
    """Made in place, or loaded from a folder: load_components brings it back, and the same latents."""
    family, guider = built("sdxl"), StaticTransitionGuidance(FULL, 600, -2.0)
    if loaded:
        guider.save_pretrained(tmp_path / "guider")
        guider = ComponentSpec(
            "guider",
            StaticTransitionGuidance,
            pretrained_model_name_or_path=str(tmp_path),
            subfolder="guider",
        ).load()
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
