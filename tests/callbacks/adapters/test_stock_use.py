"""Mitigated stock pipelines in use: batches, negative prompts, embeddings, callbacks."""

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from callbacks.adapters.stock import mitigate, selected
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.guidance import NeededRows
from infer.denoising.hooks import GuidanceRule
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from tests.callbacks.adapters.stock_runs import (
    CPU,
    Written,
    by_hand,
    close,
    counted,
    ours,
    requests,
    run,
    with_scheduler,
)
from tests.conftest import CAPTIONS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("model", ["sd", "sdxl"])
@pytest.mark.parametrize("kind, scheduler", [("dynamic", "ddim"), ("gate", "euler_ancestral")])
def test_each_sample_decides_for_itself(
    stock_pipelines: dict[str, Any], model: str, scheduler: str, kind: str
) -> None:
    """A batch is its samples alone: latents, transitions and evaluations; they differ within it."""
    pipe, prompts, steps = with_scheduler(stock_pipelines[model], scheduler), CAPTIONS[:4], 10
    if kind == "gate":
        plain = mitigate(pipe)
        run(plain, tuple(prompts), num_inference_steps=steps)
        below, above = plain.trace.difference_rms[:, 0].sort().values[1:3].tolist()
        rule: GuidanceRule = StaticTransition(500, gate=(below + above) / 2)
    else:
        rule = DynamicTransition(0.0, watch="model_output")
    twin = mitigate(pipe, rule)
    with counted(pipe.unet) as calls:
        together = run(twin, tuple(prompts), num_inference_steps=steps, guidance_scale=5.0)
    trace = twin.trace
    transitions = trace.transition_timestep.nan_to_num(-1)
    assert len(transitions.unique()) > 1
    assert sum(calls) == trace.nfe.sum()
    for row, prompt in enumerate(prompts):
        with counted(pipe.unet) as calls:
            alone = run(twin, (prompt,), [row], num_inference_steps=steps, guidance_scale=5.0)
        assert torch.allclose(alone[0], together[row], atol=1e-4)
        assert twin.trace.nfe.tolist() == [sum(calls)] == [trace.nfe[row]]
        assert twin.trace.transition_timestep.nan_to_num(-1).tolist() == [transitions[row]]
    if kind == "gate":
        assert sorted(trace.nfe.tolist()) == [2 + 4 + 5 * 2] * 2 + [10 * 2] * 2


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_many_images_of_each_prompt(stock_pipelines: dict[str, Any], model: str) -> None:
    """In the order of the prompts, each with a generator of its own."""
    pipe, rule = with_scheduler(stock_pipelines[model], "ddim"), StaticTransition(500, gate=1e-6)
    twin = mitigate(pipe, rule)
    many = run(twin, num_images_per_prompt=3)
    assert len(many) == 6 and twin.trace.nfe.shape == (6,)
    assert close(many, run(twin, tuple(prompt for prompt in CAPTIONS[:2] for _ in range(3))))
    if model == "sdxl":
        assert close(many, by_hand(pipe, CAPTIONS[:2], 6, Written("static", 5.0), per_prompt=3))


def test_sd_negative_prompts(sd: Any) -> None:
    """Of each prompt, or the run's."""
    rule, negatives = StaticTransition(500), ["old map", "sun"]
    requested = [Request(f"s{n}", 0, CAPTIONS[n], n, negatives[n]) for n in range(2)]
    output = run(mitigate(sd, rule), negative_prompt=negatives)
    assert close(output, ours(sd, [rule], 7.5, 6, requested).latents)
    output = run(mitigate(sd, rule), (CAPTIONS[0],), negative_prompt=["sun"])
    _, alike = make_images(sd, CPU, requests(CAPTIONS[:1]), 16, 7.5, 6, "sun", [rule])
    assert close(output, alike.latents)
    assert not torch.allclose(output, run(mitigate(sd, rule), (CAPTIONS[0],)), atol=1e-3)


def test_sdxl_negative_prompt(sdxl: Any) -> None:
    output = run(mitigate(sdxl, StaticTransition(500)), negative_prompt="old map", guidance_scale=7.5)
    assert close(output, by_hand(sdxl, CAPTIONS[:2], 6, Written("static", 7.5), "old map"))
    assert not torch.allclose(output, by_hand(sdxl, CAPTIONS[:2], 6, Written("static", 7.5)), atol=1e-3)


@pytest.mark.parametrize("scale", [7.5, 0.0])
def test_embeddings_in_place_of_prompts(stock_pipelines: dict[str, Any], scale: float) -> None:
    """Stock pipelines want no negative ones below a scale of 1: the twin makes those of the empty prompt."""
    rule = StaticTransition(500, -1.0)
    pipe = with_scheduler(stock_pipelines["sd"], "ddim")
    conditional, unconditional = pipe.encode_prompt(CAPTIONS[:2], CPU, 1, True)
    twin, expected = mitigate(pipe, rule), run(mitigate(pipe, rule), guidance_scale=scale)
    both = {"prompt_embeds": conditional, "negative_prompt_embeds": unconditional}
    assert close(run(twin, None, guidance_scale=scale, **both), expected)
    assert close(run(twin, None, guidance_scale=scale, prompt_embeds=conditional), expected)
    pipe = with_scheduler(stock_pipelines["sdxl"], "ddim")
    names = [
        "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
    ]  # fmt: skip
    given = dict(zip(names, pipe.encode_prompt(CAPTIONS[:2]), strict=True))
    twin, expected = mitigate(pipe, rule), run(mitigate(pipe, rule), guidance_scale=scale)
    assert close(run(twin, None, guidance_scale=scale, **given), expected)


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_callbacks_see_and_steer_each_step(stock_pipelines: dict[str, Any], model: str) -> None:
    """The latents that they see are the true ones; what they change counts, a scale at the next step."""
    pipe = with_scheduler(stock_pipelines[model], "dpm")
    seen: list[Tensor] = []

    def inspect_step(twin: Any, index: int, t: Tensor, state: dict) -> dict:
        seen.append(state["latents"])
        return state

    twin = mitigate(pipe, StaticTransition(500))
    last = run(twin, callback_on_step_end=inspect_step)
    assert len(seen) == 6 and torch.equal(seen[-1], last)

    def steer(twin: Any, index: int, t: Tensor, state: dict) -> dict:
        twin._guidance_scale = 0.0 if index == 2 else twin._guidance_scale
        return {"latents": state["latents"] * 0.5} if index == 4 else state

    twin = mitigate(pipe)
    output = run(twin, callback_on_step_end=steer, guidance_scale=3.0)
    assert twin.trace.guidance_scale[0].tolist() == [3, 3, 3, 0, 0, 0]
    assert twin.trace.nfe.tolist() == [9, 9]
    assert not torch.allclose(output, run(twin, guidance_scale=3.0), atol=1e-2)


@pytest.mark.parametrize("model, count", [("sd", 1), ("sd", 2), ("sdxl", 2)])
def test_a_callback_that_ends_guidance_midway(
    stock_pipelines: dict[str, Any], model: str, count: int
) -> None:
    """As diffusers' own: it halves the embeddings and sets the scale to 0: conditional only in stock."""
    pipe = with_scheduler(stock_pipelines[model], "ddim")
    names = ["prompt_embeds"] + ["add_text_embeds", "add_time_ids"] * (model == "sdxl")

    def cut(pipe: Any, index: int, t: Tensor, state: dict) -> dict:
        if index == 3:
            pipe._guidance_scale = 0.0
            state |= {name: state[name].chunk(2)[-1] for name in names}
        return state

    options = {"callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": ["latents", *names]}
    prompts = tuple(CAPTIONS[:count])
    twin = mitigate(pipe)
    assert close(run(twin, prompts, **options), run(pipe, prompts, **options))
    assert twin.trace.nfe.tolist() == [4 * 2 + 2] * count
    twin = mitigate(pipe, StaticTransition(300))  # still waiting when guidance ends
    run(twin, prompts, **options)
    assert twin.trace.guidance_scale[0].tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_a_callback_that_changes_the_text_in_place(stock_pipelines: dict[str, Any], model: str) -> None:
    """Keys and values of the former text are not used again."""
    pipe = with_scheduler(stock_pipelines[model], "ddim")

    def fade(pipe: Any, index: int, t: Tensor, state: dict) -> dict:
        state["prompt_embeds"].mul_(0.5)
        return state

    options = {"callback_on_step_end": fade, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    faded = run(mitigate(pipe), **options)
    assert close(faded, run(pipe, **options)) and not torch.allclose(faded, run(pipe), atol=1e-2)


def test_timesteps_that_repeat(sd: Any) -> None:
    """Karras' sigmas go beyond a cosine schedule; stock pipelines end with an IndexError there."""
    config = sd.scheduler.config
    sd.scheduler = DPMSolverMultistepScheduler.from_config(
        config, beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True
    )
    twin = mitigate(sd, StaticTransition(500))
    assert run(twin, num_inference_steps=20).isfinite().all()
    timesteps = twin.trace.timesteps[0].tolist()
    assert len(timesteps) == 20 > len(set(timesteps))


def test_sdxl_up_to_a_refiner(sdxl: Any) -> None:
    """`denoising_end`: the steps that are not taken are not in the trace."""
    twin = mitigate(sdxl, StaticTransition(500))
    run(twin, num_inference_steps=10, denoising_end=0.7)
    assert twin.trace.timesteps[0].tolist() == [901, 801, 701, 601, 501, 401, 301]
    assert twin.trace.guidance_scale[0].tolist() == [0, 0, 0, 0, 0, 5, 5]


def test_every_input_of_the_unet_is_cut_to_the_rows() -> None:
    """However deep it lies, as with IP adapters; what is no batch stays."""
    doubled = torch.arange(8.0).view(8, 1)  # four unconditional, four conditional
    rows = NeededRows(torch.tensor([1, 0, 1, 0]).bool(), torch.tensor([1, 1, 0, 0]).bool(), CPU)
    expected = [[0.0], [2.0], [4.0], [5.0]]
    given = {
        "image_embeds": [doubled, doubled], "scale": 0.5, "t": torch.tensor(8.0), "other": torch.ones(3),
        "no": None,
    }  # fmt: skip
    inputs = selected(given, rows, 8)
    assert [x.tolist() for x in inputs["image_embeds"]] == [expected, expected]
    assert isinstance(inputs["image_embeds"], list) and isinstance(selected((doubled,), rows, 8), tuple)
    assert inputs["scale"] == 0.5 and inputs["t"] == 8 and len(inputs["other"]) == 3 and inputs["no"] is None
