"""The mitigations in stock diffusers pipelines: `pipe = mitigate(pipe, rule)`, then use it as ever."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from infer.denoising.guidance import Guidance, Rows, Trace
from infer.denoising.hooks import DenoisingStep, GuidanceRule
from infer.denoising.schedulers import check_scheduler, noise_levels


def mitigate(pipe: Any, *rules: GuidanceRule) -> Any:
    """A pipeline with the same parts whose guidance the rules decide; `pipe` itself stays as it is.

    For StableDiffusionPipeline and StableDiffusionXLPipeline, with any scheduler of
    `infer.denoising.schedulers.SCHEDULERS`, any batch; decisions are per sample. `guidance_scale` means what
    it says: 0 is unconditional, negative opposite (stock pipelines take both for 1). After a call, `trace`
    holds what happened (`infer.denoising.guidance.Trace`). ValueError for other pipelines, and for rules that
    a stock pipeline cannot follow.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = type(pipe).__mro__[2] if isinstance(pipe, Mitigated) else type(pipe)  # new rules replace old ones
    if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise ValueError(
            f"{kind.__name__} cannot be mitigated: StableDiffusionPipeline and StableDiffusionXLPipeline "
            "can; for modular pipelines there are the guiders in callbacks/adapters/guiders.py"
        )
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise ValueError("this UNet was distilled to take the guidance scale as an input: it has no guidance")
    for rule in rules:
        if rule.rehearsal or rule.continuation or type(rule).prepare is not GuidanceRule.prepare:
            raise ValueError(
                f"{type(rule).__name__} with these options needs a loop of its own: python -m infer predict"
            )
    twin = copy.copy(pipe)
    twin.__class__ = type(kind.__name__, (Mitigated, kind), {"__module__": kind.__module__})
    twin.rules, twin.trace = rules, None
    return twin


class Mitigated:
    """Mixed into the class of a stock pipeline: it takes the UNet's answers through the rules."""

    rules: tuple[GuidanceRule, ...]
    trace: Trace | None  # of the last call

    @property
    def do_classifier_free_guidance(self) -> bool:
        return True  # stock pipelines drop the unconditional half at scales up to 1

    def __call__(self, *args: Any, **options: Any) -> Any:
        if options.get("guidance_rescale"):
            raise ValueError("guidance_rescale cannot be combined with mitigations: leave it out")
        check_scheduler(self.scheduler)
        self.trace = None
        with guided_unet(self):
            return super().__call__(*args, **options)


@contextmanager
def guided_unet(pipe: Any) -> Iterator[None]:
    """Within the block the UNet answers a doubled batch (unconditional, conditional) with the mix, twice.

    The pipeline's own formula then gives the mix back: m + s (m - m).
    """
    unet, own = pipe.unet, "forward" in vars(pipe.unet)  # accelerate's hooks are such an attribute
    forward, guidance, index, timesteps, levels = unet.forward, None, 0, [], []

    def guided(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **options: Any) -> tuple[Tensor]:
        nonlocal guidance, index, timesteps, levels
        latents, config = sample.chunk(2)[0], pipe.scheduler.config
        if guidance is None:
            timesteps, levels = pipe.scheduler.timesteps.tolist(), noise_levels(pipe.scheduler)
            for rule in pipe.rules:
                rule.check(timesteps, pipe.guidance_scale, config.num_train_timesteps)
            guidance = Guidance(pipe.rules, len(latents), latents.device)
        step = DenoisingStep(
            index, timesteps[index], timesteps, latents, *levels[index],
            config.prediction_type, float(pipe.guidance_scale),
        )  # fmt: skip

        def predict(rows: Rows) -> Tensor:
            pick = partial(picked, rows=rows, size=len(sample))
            inputs = (pick(sample), timestep, pick(encoder_hidden_states))
            return forward(*inputs, **{name: pick(value) for name, value in options.items()})[0]

        mixed = guidance(step, predict)
        index += 1
        return (torch.cat([mixed, mixed]),)

    unet.forward = guided
    try:
        yield
        pipe.trace = guidance and guidance.trace()
    finally:
        if own:
            unet.forward = forward
        else:
            del unet.forward


def picked(value: Any, rows: Rows, size: int) -> Any:
    """The call's rows of every tensor with an entry for each of the doubled batch, however deep it lies."""
    if isinstance(value, dict):
        return {name: picked(entry, rows, size) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(picked(entry, rows, size) for entry in value)
    if isinstance(value, Tensor) and value.ndim and len(value) == size:
        return rows.pick(*value.chunk(2))
    return value
