"""The mitigations in stock diffusers pipelines: `pipe = mitigate(pipe, rule)`, then use it as before."""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from callbacks.adapters.guarded_call import call_guarded
from callbacks.adapters.own_loop import call_in_own_loop
from infer.denoising.guidance import Guidance, NeededRows, Trace
from infer.denoising.hooks import DenoisingStep, GuidanceRule, overrides
from infer.denoising.schedulers import check_scheduler, noise_levels
from infer.denoising.text_projections import projected_once
from infer.index.guard import Guard, Guarded
from infer.models.forwards import replaced_forwards
from infer.models.weights import no_warnings

log = logging.getLogger(__name__)
LOOP_HOOKS = (
    "change_prompts", "prepare", "unconditional_embedding", "conditional_embedding", "initial_noise",
    "before_denoising", "attention_processors", "step_embedding", "after_step",
)  # fmt: skip


def mitigate(pipe: Any, *rules: GuidanceRule, guard: Guard | None = None) -> Any:
    """A pipeline with the same parts whose guidance the rules decide; `pipe` itself stays as it is.

    For StableDiffusionPipeline and StableDiffusionXLPipeline, with any scheduler of
    `infer.denoising.schedulers.SCHEDULERS`, any batch; decisions are per sample. `guidance_scale` means what
    it says: 0 is unconditional, negative opposite (stock pipelines take both for 1). After a call, `trace`
    holds what happened (`infer.denoising.guidance.Trace`), and `guarded` what the guard says of the images.

    Rules that only change the scale work within the pipeline's own loop. With others (`LOOP_HOOKS`) this
    project's loop denoises, for StableDiffusionPipeline alone, and `callback_on_step_end` is called once.

    One rule serves one call at a time: pipelines that share it take turns. ValueError for other pipelines,
    and for rules that they cannot follow.
    """
    with no_warnings():  # hints about image processors, which are not used here
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = stock_kind(pipe)  # new rules replace old ones
    if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise ValueError(
            f"{kind.__name__} cannot be mitigated: StableDiffusionPipeline and StableDiffusionXLPipeline "
            "can; for modular pipelines there are the guiders in callbacks/adapters/guiders.py"
        )
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise ValueError("this UNet was distilled to take the guidance scale as an input: it has no guidance")
    for rule in (*rules, *(guard.stronger if guard else ())):
        if overrides(rule, *LOOP_HOOKS) and not isinstance(pipe, StableDiffusionPipeline):
            raise ValueError(f"{type(rule).__name__} is for StableDiffusionPipeline, not {kind.__name__}")
    return twin_of(kind, vars(pipe) | {"rules": rules, "guard": guard, "trace": None, "guarded": None})


def stock_kind(pipe: Any) -> type:
    """The pipeline's class, without the mitigation."""
    return type(pipe).__mro__[2] if isinstance(pipe, Mitigated) else type(pipe)


def twin_of(kind: type, attributes: dict[str, Any]) -> Any:
    """A mitigated pipeline of that class with these attributes."""
    twin = object.__new__(type(kind.__name__, (Mitigated, kind), {"__module__": kind.__module__}))
    vars(twin).update(attributes)
    return twin


class Mitigated:
    """Mixed into the class of a stock pipeline: it takes the UNet's answers through the rules."""

    rules: tuple[GuidanceRule, ...]
    guard: Guard | None
    trace: Trace | None  # of the last call
    guarded: Guarded | None

    @property
    def do_classifier_free_guidance(self) -> bool:
        return True  # stock pipelines drop the unconditional half at scales up to 1

    def __call__(self, *args: Any, **options: Any) -> Any:
        if options.get("guidance_rescale"):
            raise ValueError("guidance_rescale cannot be combined with mitigations: leave it out")
        check_scheduler(self.scheduler)
        if self.guard is None:
            return self.guided_call(*args, **options)
        self.guarded = None
        output, self.guarded = call_guarded(self, self.guard, self.named(*args, **options))
        return output

    def named(self, *args: Any, **options: Any) -> dict[str, Any]:
        """The arguments of a stock call by their names."""
        arguments = inspect.signature(super().__call__).bind(*args, **options).arguments
        return arguments | arguments.pop("kwargs", {})

    def guided_call(self, *args: Any, rules: Sequence[GuidanceRule] | None = None, **options: Any) -> Any:
        """The stock call under the rules, those of the pipeline if none are given."""
        self.trace, rules = None, self.rules if rules is None else rules
        if any(overrides(rule, *LOOP_HOOKS) for rule in rules):
            return call_in_own_loop(self, rules, self.named(*args, **options))
        with guided_unet(self, rules):
            return self.stock_call(*args, **options)

    def stock_call(self, *args: Any, **options: Any) -> Any:
        return super().__call__(*args, **options)

    def twin(self, **parts: Any) -> Any:
        """The same pipeline with other parts."""
        return twin_of(stock_kind(self), vars(self) | parts)

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        """Save the stock pipeline, and say that the rules are not in it."""
        log.warning("the mitigation is not saved with the pipeline: call mitigate again where you load it")
        super().save_pretrained(*args, **options)

    def __reduce__(self) -> tuple:
        """For pickle and copy: the class of a twin is made anew."""
        return twin_of, (stock_kind(self), vars(self))


@contextmanager
def guided_unet(pipe: Any, rules: Sequence[GuidanceRule]) -> Iterator[None]:
    """Within the block the UNet answers a doubled batch (unconditional, conditional) with the mix, twice.

    The pipeline's own formula then gives the mix back: m + s (m - m).
    """
    unet = pipe.unet
    forward, guidance, index, timesteps, levels, first = unet.forward, None, 0, [], [], {}

    def guided(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **options: Any) -> tuple[Tensor]:
        nonlocal guidance, index, timesteps, levels, first
        latents, config, scale = sample.chunk(2)[0], pipe.scheduler.config, float(pipe.guidance_scale)
        inputs = options | {"encoder_hidden_states": encoder_hidden_states}
        if guidance is None:
            if getattr(pipe.scheduler, "step_index", 0) is None:
                pipe.scheduler.set_begin_index(0)  # timesteps may repeat
            timesteps, levels, first = pipe.scheduler.timesteps.tolist(), noise_levels(pipe.scheduler), inputs
            for rule in rules:
                rule.check(timesteps, pipe.guidance_scale)
                rule.begin(len(latents), latents.device)
            guidance = Guidance(rules, len(latents), latents.device)
        if len(encoder_hidden_states) < len(sample):  # a callback ended guidance
            inputs, scale = doubled(inputs, first, len(latents)), 1.0
        step = DenoisingStep(
            index, timesteps[index], timesteps, latents, *levels[index], config.prediction_type, scale
        )
        rows = guidance.needed_rows(step)
        if len(rows.index) < len(sample):
            inputs = {name: selected(value, rows, len(sample)) for name, value in inputs.items()}
            sample = selected(sample, rows, len(sample))
        mixed = guidance.mix(step, rows, forward(sample, timestep, **inputs)[0])
        index += 1
        return (torch.cat([mixed, mixed]),)

    with replaced_forwards({unet: guided}), projected_once(unet):
        yield
    pipe.trace = guidance and guidance.trace()


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
