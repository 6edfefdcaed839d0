"""What cannot be mitigated in a stock pipeline, and says so."""

from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, KDPM2DiscreteScheduler, StableDiffusionImg2ImgPipeline

from callbacks.adapters.stock import mitigate
from callbacks.mitigations.base import NoMitigation
from callbacks.mitigations.detour import Detour
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from infer.denoising.hooks import GuidanceRule
from tests.callbacks.adapters.families import quiet
from tests.callbacks.adapters.stock_runs import run
from tests.conftest import random_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")


def test_other_pipelines_are_refused(sd: Any) -> None:
    """By name, with what there is for them."""
    other = StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    with pytest.raises(ValueError, match="StableDiffusionImg2ImgPipeline cannot.*adapters/guiders.py"):
        mitigate(other, NoMitigation())
    with pytest.raises(ValueError, match="UNet2DConditionModel cannot be mitigated"):
        mitigate(sd.unet)


@pytest.mark.parametrize(
    "rule",
    [TwoPassTransition(), Detour(StaticTransition(), prompt="a dog")],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_that_need_our_own_loop_are_refused_for_sdxl(sdxl: Any, rule: GuidanceRule) -> None:
    for rules in ([rule], [StaticTransition(500), rule]):
        with pytest.raises(ValueError, match=f"{type(rule).__name__} is for StableDiffusionPipeline, not"):
            mitigate(sdxl, *rules)


def test_a_unet_that_takes_the_scale_as_an_input_is_refused(stock_pipelines: dict[str, Any]) -> None:
    pipe = quiet(random_pipeline())
    pipe.unet = type(pipe.unet).from_config(pipe.unet.config, time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="distilled"):
        mitigate(pipe)


@pytest.mark.parametrize("change, options, message", [
    ({}, {"guidance_rescale": 0.7}, "guidance_rescale cannot be combined"),
    ({"scheduler": FlowMatchEulerDiscreteScheduler()}, {}, "FlowMatchEuler.* is not supported.*ddim,"),
    ({"scheduler": KDPM2DiscreteScheduler()}, {}, "KDPM2DiscreteScheduler is not supported"),
    ({"prediction_type": "sample"}, {}, "'sample'"),
    ({"rules": [StaticTransition(0.5)]}, {}, "never give guidance: the 6 timesteps"),
    ({"rules": [DynamicTransition()]}, {"num_inference_steps": 2}, "at least 3"),
    ({"rules": [StaticTransition(500, 3.0)]}, {"guidance_scale": 3.0}, "guidance_before equals"),
])  # fmt: skip
def test_what_a_call_cannot_do_is_an_error(sd: Any, change: dict, options: dict, message: str) -> None:
    if "prediction_type" in change:
        change = {"scheduler": type(sd.scheduler).from_config(sd.scheduler.config, **change)}
    twin = mitigate(sd, *change.get("rules", []))
    twin.scheduler = change.get("scheduler", sd.scheduler)
    with pytest.raises(ValueError, match=message):
        run(twin, **options)
    assert "forward" not in vars(sd.unet)
