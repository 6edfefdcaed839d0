"""The pipeline that was mitigated stays as it was, and gives its twin all that it has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor

from callbacks.adapters.stock import mitigate
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.schedulers import make_scheduler
from tests.callbacks.adapters.families import quiet
from tests.callbacks.adapters.stock_runs import close, counted, run, with_scheduler

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_the_pipeline_itself_stays_as_it_is(stock_pipelines: dict[str, Any], model: str) -> None:
    pipe = with_scheduler(stock_pipelines[model], "ddim")
    kind, before = type(pipe), run(pipe)
    twin = mitigate(pipe, StaticTransition(500))
    mitigated = run(twin)
    assert type(pipe) is kind and not hasattr(pipe, "rules") and not hasattr(pipe, "trace")
    assert "forward" not in vars(pipe.unet)
    assert pipe.do_classifier_free_guidance and not kind.do_classifier_free_guidance.fget(
        with_scale(pipe, 1.0)
    )
    assert torch.equal(run(pipe), before)
    assert torch.equal(run(twin), mitigated) and not torch.allclose(mitigated, before, atol=1e-2)
    assert isinstance(twin, kind) and type(twin).__name__ == kind.__name__
    assert all(twin.components[name] is part for name, part in pipe.components.items())


def with_scale(pipe: Any, scale: float) -> Any:
    pipe._guidance_scale = scale
    return pipe


def test_twins_share_the_weights_and_may_have_a_scheduler_of_their_own(sd: Any) -> None:
    """A change of the weights is seen by both; another scheduler of the twin's is not."""
    twin, before = mitigate(sd), run(sd)
    assert close(run(twin, guidance_scale=7.5), before)
    bias = sd.unet.conv_out.bias
    with torch.no_grad():
        bias += 0.1
    changed = run(sd)
    assert close(run(twin), changed) and not torch.allclose(changed, before, atol=1e-2)
    with torch.no_grad():
        bias -= 0.1
    twin.scheduler = make_scheduler(sd.scheduler, "euler")
    run(twin)
    assert type(sd.scheduler).__name__ == "DDIMScheduler"
    assert torch.allclose(run(sd), before, atol=1e-4)


def test_a_twin_saves_as_the_pipeline_that_it_is(
    sd: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And says that the rules are not saved."""
    mitigate(sd, StaticTransition(500)).save_pretrained(tmp_path)
    assert "the mitigation is not saved with the pipeline: call mitigate again" in caplog.text
    assert torch.equal(run(quiet(type(sd).from_pretrained(tmp_path, safety_checker=None))), run(sd))


def test_a_mitigated_pipeline_takes_other_rules(sd: Any) -> None:
    """They replace those that it had."""
    again = mitigate(mitigate(sd, StaticTransition(650, -3.0)), StaticTransition(500))
    assert torch.equal(run(again), run(mitigate(sd, StaticTransition(500))))


class Failure(BaseException):
    """Not even an Exception: as KeyboardInterrupt."""


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("where", ["callback", "unet", "rule", "before"])
def test_an_exception_leaves_nothing_behind(
    sd: Any, monkeypatch: pytest.MonkeyPatch, hooked: bool, where: str
) -> None:
    """The UNet is as it was, with accelerate's hook or without, and the twin works."""
    if hooked:
        add_hook_to_module(sd.unet, ModelHook())
    try:
        forward, twin = vars(sd.unet).get("forward"), mitigate(sd, StaticTransition(500))
        expected = run(twin)
        fail = StaticTransition(999) if where == "rule" else StaticTransition(500)
        broken = mitigate(sd, fail)

        def raising(*args: Any, **options: Any) -> Any:
            raise Failure

        with monkeypatch.context() as patch, pytest.raises((Failure, ValueError)):
            if where == "unet":
                patch.setattr(sd.unet.conv_out, "forward", raising)
            if where == "before":
                patch.setattr(sd.text_encoder, "forward", raising)
            run(broken, callback_on_step_end=raising if where == "callback" else None)
        assert vars(sd.unet).get("forward") is forward
        assert torch.equal(run(twin), expected)
        assert torch.equal(run(mitigate(sd, StaticTransition(500))), expected)
    finally:
        if hooked:
            remove_hook_from_module(sd.unet)
            del sd.unet.forward


def test_hooks_of_accelerate_stay_and_work(sd: Any) -> None:
    """They are how diffusers offloads."""
    expected, rows = run(mitigate(sd, StaticTransition(500))), []

    class Recorder(ModelHook):
        def pre_forward(self, module: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
            rows.append(len(sample))
            return (sample, *args), options

    add_hook_to_module(sd.unet, Recorder())
    try:
        assert torch.equal(run(mitigate(sd, StaticTransition(500))), expected)
        assert rows == [2, 2, 4, 4, 4, 4]
    finally:
        remove_hook_from_module(sd.unet)
        del sd.unet.forward


@pytest.mark.slow
def test_a_compiled_unet_is_mitigated_too(sd: Any) -> None:
    rule = StaticTransition(500, -2.0)  # every row at each step: one shape to compile
    expected, twin = run(mitigate(sd, rule), num_inference_steps=2), mitigate(sd, rule)
    twin.unet = torch.compile(sd.unet, backend="eager")
    assert close(run(twin, num_inference_steps=2), expected)
    assert twin.trace.guidance_scale[0].tolist() == [-2.0, 7.5]
    assert "forward" not in vars(sd.unet)


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_what_a_scale_means(stock_pipelines: dict[str, Any], model: str) -> None:
    """Stock pipelines take 0 and -2 for 1. The twin at 1 is that; at 0 and -2 it is what it says."""
    pipe = with_scheduler(stock_pipelines[model], "ddim")
    stock = {scale: run(pipe, guidance_scale=scale) for scale in (1.0, 0.0, -2.0)}
    assert torch.equal(stock[0.0], stock[1.0]) and torch.equal(stock[-2.0], stock[1.0])
    twin = mitigate(pipe)
    output = {scale: run(twin, guidance_scale=scale) for scale in (1.0, 0.0, -2.0)}
    assert close(output[1.0], stock[1.0])
    for one, other in ((0.0, 1.0), (-2.0, 1.0), (-2.0, 0.0)):
        assert not torch.allclose(output[one], output[other], atol=1e-2)
    with counted(pipe.unet) as calls:
        run(twin, guidance_scale=0.0)
        run(twin, guidance_scale=1.0)
    assert calls == [2] * 12
