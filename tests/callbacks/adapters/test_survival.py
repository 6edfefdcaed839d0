"""What people do with pipelines: a mitigated one, or a guider, goes on, or says that it does not."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.adapters.guiders import DynamicTransitionGuidance, StaticTransitionGuidance
from callbacks.adapters.stock import mitigate
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from tests.callbacks.adapters.families import built, classic_sdxl, quiet
from tests.callbacks.adapters.stock_runs import CPU, close, run
from tests.callbacks.adapters.test_guider_steps import CURVES, FULL, TIMESTEPS, drive
from tests.conftest import random_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


# A mitigated pipeline


@pytest.mark.parametrize("slicing", ["attention", "vae"])
def test_slicing(slicing: str) -> None:
    """Set before and after; the images are the same."""
    pipe = quiet(random_pipeline())
    twin = mitigate(pipe, StaticTransition(500))
    expected = run(twin, output_type="pt")
    pipe.enable_attention_slicing(1) if slicing == "attention" else pipe.vae.enable_slicing()
    assert torch.allclose(run(twin, output_type="pt"), expected, atol=1e-4)
    if slicing == "attention":
        twin.disable_attention_slicing()
        assert torch.allclose(run(twin, output_type="pt"), expected, atol=1e-4)


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_offload(model: str) -> None:
    """The hooks of enable_model_cpu_offload, with the CPU as the device: called, and the latents the same."""
    from accelerate import cpu_offload_with_hook

    pipe = quiet(random_pipeline()) if model == "sd" else classic_sdxl()
    twin = mitigate(pipe, StaticTransition(500))
    expected, hooks = run(twin), []
    for name in pipe.model_cpu_offload_seq.split("->"):
        if (part := getattr(pipe, name, None)) is not None:
            _, hook = cpu_offload_with_hook(part, CPU, hooks[-1] if hooks else None)
            hooks.append(hook)
    pipe._all_hooks = twin._all_hooks = hooks
    hooked = vars(pipe.unet)["forward"]
    assert torch.equal(run(twin), expected) and torch.equal(run(twin), expected)
    assert vars(pipe.unet)["forward"] is hooked


def test_an_interrupt_ends_the_run_where_it_came(sd: Any) -> None:
    """`pipe._interrupt`, diffusers' own way; the trace has the steps that were taken, the next run all."""

    def stop(twin: Any, index: int, t: Tensor, state: dict) -> dict:
        twin._interrupt = index == 2
        return state

    twin, expected = mitigate(sd, StaticTransition(500)), []
    stopped = run(twin, callback_on_step_end=stop)
    assert twin.trace.timesteps.shape == (2, 3)
    run(twin, callback_on_step_end=lambda p, i, t, state: (expected.append(state["latents"]), state)[1])
    assert torch.equal(stopped, expected[2]) and twin.trace.timesteps.shape == (2, 6)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_copies(sd: Any, duplicate: Callable[[Any], Any]) -> None:
    """With rules of their own, but for the shallow copy: a run of one leaves the other's state alone."""
    twin = mitigate(sd, DynamicTransition(-1.0, watch="model_output"))
    expected = run(twin, num_inference_steps=8)
    other = duplicate(twin)
    assert type(other).__name__ == "StableDiffusionPipeline" and isinstance(other, type(twin).__mro__[2])
    assert torch.equal(run(other, num_inference_steps=8), expected)
    assert torch.equal(other.trace.nfe, twin.trace.nfe)
    assert (other.rules[0] is twin.rules[0]) == (duplicate is copy.copy)
    assert (other.unet is twin.unet) == (duplicate is copy.copy)


def test_two_pipelines_share_a_rule(sd: Any, sdxl: Any) -> None:
    """In turn, in batches of other sizes."""
    rule = DynamicTransition(-1.0, watch="model_output")
    one, other = mitigate(sd, rule), mitigate(sdxl, rule)
    alone = run(mitigate(sd, DynamicTransition(-1.0, watch="model_output")), num_inference_steps=8)
    run(other, ("sun",), num_inference_steps=8)
    assert torch.equal(run(one, num_inference_steps=8), alone)


def test_public_attributes_before_the_first_call() -> None:
    """Those of the stock pipeline can be read, or not, as there; ours always."""
    pipe = quiet(random_pipeline())
    twin, failing = mitigate(pipe, StaticTransition(500)), []
    for name in (name for name in dir(twin) if not name.startswith("_")):
        try:
            getattr(twin, name)
        except Exception:  # stock pipelines have attributes that only a call sets
            failing.append(name)
    for name in failing:
        with pytest.raises(AttributeError):
            getattr(pipe, name)
    assert twin.trace is None and twin.guarded is None and twin.do_classifier_free_guidance


# A guider


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
@pytest.mark.parametrize("midway", [False, True])
def test_copies_of_a_guider(duplicate: Callable[[Any], Any], midway: bool) -> None:
    """Settings and rule come along, a run midway starts afresh in either; none disturbs the other."""
    guider = DynamicTransitionGuidance(FULL, -2.0)
    expected = [scale for _, scale in drive(guider, CURVES, TIMESTEPS)]
    if midway:
        list(drive(guider, CURVES, TIMESTEPS, stop=3))
    other = duplicate(guider)
    assert dict(other.config) == dict(guider.config) and other.rule is not guider.rule
    for each in (other, guider):
        scales = [scale for _, scale in drive(each, CURVES, TIMESTEPS)]
        assert all(torch.equal(a, b) for a, b in zip(scales, expected, strict=True))


def test_two_pipelines_share_a_guider() -> None:
    """SDXL, SD 3, SDXL: each run is as with a guider of its own."""
    first, second = built("sdxl"), built("sd3")
    shared = StaticTransitionGuidance(5.0, 500)
    alone = [family.run(StaticTransitionGuidance(5.0, 500))[0] for family in (first, second)]
    first.pipe.update_components(guider=shared)
    second.pipe.update_components(guider=shared)
    runs = [family.run(shared)[0] for family in (first, second, first)]
    assert close(runs[0], alone[0]) and close(runs[1], alone[1]) and close(runs[2], alone[0])


def test_a_guider_after_an_exception() -> None:
    """In the middle of a run; the next one starts afresh."""
    family, guider = built("sdxl"), StaticTransitionGuidance(5.0, 500)
    expected, _ = family.run(guider)

    def fail(*args: Any) -> None:
        raise KeyError

    handle = family.pipe.unet.conv_out.register_forward_pre_hook(fail)
    try:
        with pytest.raises(KeyError):
            family.run(guider)
    finally:
        handle.remove()
    assert close(family.run(guider)[0], expected)
