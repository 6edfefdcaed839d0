"""Guiders step by step: what they evaluate and the scales that they give each row, without a pipeline."""

import warnings

import pytest
import torch

from callbacks.adapters.guiders import DynamicTransitionGuidance, StaticTransitionGuidance
from tests.callbacks.adapters.guider_steps import CURVES, FULL, TIMESTEPS, drive

pytestmark = pytest.mark.usefixtures("one_thread")


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
