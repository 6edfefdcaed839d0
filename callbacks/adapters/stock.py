"""The mitigations in stock diffusers pipelines: `pipe = mitigate(pipe, rule)`, then use it as before."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from infer.denoising.guidance import Guidance, NeededRows, Trace
from infer.denoising.hooks import DenoisingStep, GuidanceRule, overrides
from infer.denoising.schedulers import check_scheduler, noise_levels
from infer.models.weights import no_warnings

LOOP_HOOKS = (
    "change_prompts", "prepare", "unconditional_embedding", "conditional_embedding", "initial_noise",
    "before_denoising", "attention_processors", "step_embedding", "after_step",
)  # fmt: skip


def mitigate(pipe: Any, *rules: GuidanceRule) -> Any:
    """A pipeline with the same parts whose guidance the rules decide; `pipe` itself stays as it is.

    For StableDiffusionPipeline and StableDiffusionXLPipeline, with any scheduler of
    `infer.denoising.schedulers.SCHEDULERS`, any batch; decisions are per sample. `guidance_scale` means what
    it says: 0 is unconditional, negative opposite (stock pipelines take both for 1). After a call, `trace`
    holds what happened (`infer.denoising.guidance.Trace`). ValueError for other pipelines, and for rules that
    a stock pipeline cannot follow.
    """
    with no_warnings():  # hints about image processors, which are not used here
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
        if overrides(rule, *LOOP_HOOKS):
            raise ValueError(f"{type(rule).__name__} needs this project's own loop: python -m infer predict")
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
    forward, guidance, index, timesteps, levels, first = unet.forward, None, 0, [], [], {}

    def guided(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **options: Any) -> tuple[Tensor]:
        nonlocal guidance, index, timesteps, levels, first
        latents, config, scale = sample.chunk(2)[0], pipe.scheduler.config, float(pipe.guidance_scale)
        inputs = options | {"encoder_hidden_states": encoder_hidden_states}
        if guidance is None:
            if getattr(pipe.scheduler, "step_index", 0) is None:
                pipe.scheduler.set_begin_index(0)  # timesteps may repeat
            timesteps, levels, first = pipe.scheduler.timesteps.tolist(), noise_levels(pipe.scheduler), inputs
            for rule in pipe.rules:
                rule.check(timesteps, pipe.guidance_scale)
                rule.begin(len(latents), latents.device)
            guidance = Guidance(pipe.rules, len(latents), latents.device)
        if len(encoder_hidden_states) < len(sample):  # a callback ended guidance
            inputs, scale = doubled(inputs, first, len(latents)), 1.0
        step = DenoisingStep(
            index, timesteps[index], timesteps, latents, *levels[index], config.prediction_type, scale
        )
        rows = guidance.needed_rows(step)
        inputs = {name: selected(value, rows, len(sample)) for name, value in inputs.items()}
        mixed = guidance.mix(step, rows, forward(selected(sample, rows, len(sample)), timestep, **inputs)[0])
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


def each_tensor(function: Callable, *values: Any) -> Any:
    """`function` of tensors at the same position of nested containers, in the containers of the first."""
    value = values[0]
    if isinstance(value, dict):
        return {name: each_tensor(function, *(v[name] for v in values)) for name in value}
    if isinstance(value, (list, tuple)):
        return type(value)(each_tensor(function, *entries) for entries in zip(*values, strict=True))
    return function(*values) if isinstance(value, Tensor) and value.ndim else value


def selected(value: Any, rows: NeededRows, size: int) -> Any:
    """The call's rows of every tensor with an entry for each of the doubled batch, at any depth."""
    return each_tensor(lambda x: rows.select(*x.chunk(2)) if len(x) == size else x, value)


def doubled(value: Any, first: Any, count: int) -> Any:
    """With the unconditional halves of the first call's inputs before tensors that lost theirs."""
    return each_tensor(
        lambda x, before: torch.cat([before[:count], x]) if len(x) == count else x, value, first
    )
