"""Mitigations in stock pipelines: SD against our own loop, SDXL against one written out."""

from typing import Any

import numpy as np
import pytest
import torch

from callbacks.adapters.stock import mitigate
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.sampling import make_images
from tests.callbacks.adapters.stock_runs import (
    CASES,
    CPU,
    RULES,
    STEPS,
    Written,
    assert_same_trace,
    by_hand,
    close,
    counted,
    gate_between,
    ours,
    requests,
    run,
    with_scheduler,
)
from tests.conftest import CAPTIONS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("scheduler, rule, scale", CASES)
def test_sd_is_our_own_loop(sd: Any, scheduler: str, rule: str, scale: float) -> None:
    """Latents, evaluations, and all that was seen on the way."""
    pipe, steps = with_scheduler(sd, scheduler), STEPS.get(rule, 4)
    requested = requests(CAPTIONS[:2])
    gate = gate_between(ours(pipe, [], 7.5, steps, requested)) if rule == "gate" else 0.0
    expected = ours(pipe, RULES[rule](gate), scale, steps, requested)
    twin = mitigate(pipe, *RULES[rule](gate))
    with counted(pipe.unet) as calls:
        latents = run(twin, guidance_scale=scale, num_inference_steps=steps)
    assert latents.isfinite().all()
    assert close(latents, expected.latents)
    assert_same_trace(twin.trace, expected)
    assert sum(calls) == twin.trace.nfe.sum()


def test_sd_images_are_those_of_predict(sd: Any) -> None:
    """To the pixel; with and without return_dict."""
    rule = StaticTransition(500)
    images, _ = make_images(sd, CPU, requests(CAPTIONS[:2]), 16, 7.5, 6, rules=[rule])
    output = run(mitigate(sd, rule), output_type="pil")
    assert np.array_equal(np.stack(images), np.stack(output))
    output = mitigate(sd, rule)(
        CAPTIONS[0], num_inference_steps=6, generator=torch.Generator().manual_seed(0), return_dict=False
    )
    assert np.array_equal(images[0], output[0][0])


# Stable Diffusion XL: as in a loop written out


@pytest.mark.parametrize("scheduler, rule, scale", CASES)
def test_sdxl_is_a_loop_written_out(sdxl: Any, scheduler: str, rule: str, scale: float) -> None:
    """Its UNet has more inputs; its negative embeddings are zeros where no negative prompt is given."""
    pipe, steps, gate = with_scheduler(sdxl, scheduler), STEPS.get(rule, 4), 0.0
    if rule == "gate":
        plain = mitigate(pipe)
        run(plain, num_inference_steps=steps)
        gate = gate_between(plain.trace)
    written = Written(rule, scale, gate)
    expected = by_hand(pipe, CAPTIONS[:2], steps, written)
    twin = mitigate(pipe, *RULES[rule](gate))
    with counted(pipe.unet) as calls:
        latents = run(twin, guidance_scale=scale, num_inference_steps=steps)
    assert latents.isfinite().all()
    assert close(latents, expected)
    assert sum(calls) == twin.trace.nfe.sum()
    if rule == "dynamic":
        actual = [None if np.isnan(t) else t for t in twin.trace.transition_timestep.tolist()]
        assert actual == written.since and actual != [None, None]
