"""Our own rule, the detour: while a sample waits for its transition, guide it somewhere else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.mitigation import Mitigation
from callbacks.transition import Transition
from data.pipeline import check_pipeline, load_pipeline
from infer.images import embed
from infer.neighbours import CaptionBank
from infer.rules import DenoisingStep, Request


def without(g: Tensor, m: Tensor) -> Tensor:
    """g - max(0, <g, m> / <m, m>) m per sample, (B, ...): g without its part along m."""
    a, b = g.float(), m.float()  # half precision overflows in the sums
    share = (a * b).flatten(1).sum(1) / (b * b).flatten(1).sum(1).clamp(min=1e-12)
    return (a - share.clamp(min=0).view(-1, *[1] * (g.ndim - 1)) * b).to(g.dtype)


class Detour(Mitigation):
    """Before its transition a sample is guided towards an alternative, and off the memorized direction.

    While t > t*: eps = eps_u + s (eps_n - eps_u) - r (eps_c - eps_u); from t* on ordinary guidance with the
    prompt. Waiting without guidance lets the layout form without the prompt; an alternative that is near to
    the prompt keeps most of it. eps_n is the prediction for another text; with the base model,
    eps_u + s (eps_n - eps_u) is all of the untouched model's guidance with the prompt itself. A dynamic
    transition watches the memorized prompt's own difference. A sample without an alternative follows
    `transition` as it is, and is counted.

    At most one of captions, prompt and base_pipeline; without them, each prompt's own alternative is taken
    from the column `alternative_prompt` of the prompt file. Costs two predictions a step before the
    transition, and up to two more where r > 0 or the transition watches.

    Args:
        transition: when, and what a sample without an alternative does: its guidance_before.
        captions: ordinary prompts (what --data.prompts takes): the nearest one is the alternative, by the
            cosine of the text encoder's pooled embeddings.
        exclude: prompts that are no alternatives, nor are captions nearer to one of them than max_cosine: the
            training run's folder, for the captions that it made the model memorize.
        min_cosine: a nearest caption further than this is no alternative.
        max_cosine: see exclude; also for the prompt itself.
        prompt: one alternative for all prompts.
        base_pipeline: the model before the finetune, in place of the finetuned one.
        repulsion: r >= 0.
        orthogonal: leave out of the way towards the alternative what leads to the memorized image: with
            g = eps_n - eps_u and m = eps_c - eps_u per sample, g - max(0, <g, m> / <m, m>) m in place of g.
        scale: s; null: the guidance scale of the run.
    """

    def __init__(
        self,
        transition: Transition,
        captions: str | None = None,
        exclude: str | None = None,
        min_cosine: float = 0.0,
        max_cosine: float = 0.99,
        prompt: str | None = None,
        base_pipeline: str | None = None,
        repulsion: float = 0.0,
        orthogonal: bool = False,
        scale: float | None = None,
    ):
        if sum(source is not None for source in (captions, prompt, base_pipeline)) > 1:
            raise ValueError("a detour goes one way: give one of captions, prompt and base_pipeline")
        if captions is None and exclude is not None:
            raise ValueError("exclude is for captions: it has no effect without them")
        if repulsion < 0:
            raise ValueError(f"repulsion must be at least 0, not {repulsion}")
        if not -1 <= min_cosine < max_cosine <= 1:
            raise ValueError(f"min_cosine {min_cosine} and max_cosine {max_cosine} must rise, within -1..1")
        if base_pipeline is not None:
            check_pipeline(base_pipeline)
        self.transition = transition
        if self.transition.rehearsal or self.transition.ramp_timesteps:
            raise ValueError("a detour's transition is static or dynamic, without a ramp")
        self.captions, self.exclude, self.prompt, self.base_pipeline = (
            captions,
            exclude,
            prompt,
            base_pipeline,
        )
        self.min_cosine, self.max_cosine = min_cosine, max_cosine
        self.repulsion, self.orthogonal, self.scale = repulsion, orthogonal, scale
        self.watched_space, self.continuation = self.transition.watched_space, self.transition.continuation
        self._bank: CaptionBank | None = None
        self._base: Any = None

    def check(
        self, timesteps: Sequence[float], guidance_scale: float, num_train_timesteps: int = 1000
    ) -> None:
        self.transition.check(timesteps, guidance_scale, num_train_timesteps)
        for source in filter(None, (self.captions, self.exclude)):
            if not (Path(source).exists() or set(source) & set("{*?[")):  # shards may be many
                raise FileNotFoundError(f"no prompts {source!r} for the detour")

    def prepare(self, pipe: Any, requests: Sequence[Request], device: torch.device) -> None:
        """Find each prompt's alternative and embed it."""
        self._unet, prompts = pipe.unet, [request.prompt for request in requests]
        if self.base_pipeline is not None:
            if self._base is None:
                self._base = load_pipeline(self.base_pipeline, dtype=pipe.unet.dtype).to(device)
            negatives = [request.negative_prompt or "" for request in requests]
            self.alternatives = [self.base_pipeline] * len(requests)
            self._embeddings = embed(self._base, prompts, device)
            self._negatives = embed(self._base, negatives, device)
            return
        if self.captions is not None:
            if self._bank is None:
                self._bank = CaptionBank.embed(pipe, device, self.captions, self.exclude, self.max_cosine)
            self.alternatives = self._bank.nearest(prompts, self.min_cosine, self.max_cosine)
        elif self.prompt is not None:
            self.alternatives = [self.prompt] * len(requests)
        else:
            self.alternatives = [request.alternative_prompt for request in requests]
        self._embeddings = embed(pipe, [text or "" for text in self.alternatives], device)

    def begin(self, batch_size: int, device: torch.device) -> None:
        self.transition.begin(batch_size, device)
        self._has = torch.tensor([text is not None for text in self.alternatives])

    def watches(self, step: DenoisingStep) -> bool:
        return self.transition.watches(step) or (self.orthogonal and bool(self.on_the_way(step).any()))

    def observe(self, step: DenoisingStep) -> None:
        self.transition.observe(step)

    def on_the_way(self, step: DenoisingStep) -> Tensor:
        """Samples that are guided towards their alternative at this step, (B,) bool."""
        waiting = self.transition.waiting(step)
        return waiting & self._has.to(waiting.device)

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        plain = self.transition.guidance_scale(step, scale)
        return torch.where(self.on_the_way(step), -self.repulsion, plain)

    def alternative_scale(self, step: DenoisingStep) -> Tensor:
        scale = 1.0 if self.base_pipeline is not None else self.own_scale(step)
        return torch.where(self.on_the_way(step), scale, 0.0)

    def own_scale(self, step: DenoisingStep) -> float:
        return step.guidance_scale if self.scale is None else self.scale

    def alternative(self, step: DenoisingStep, needed: Tensor) -> tuple[Tensor, int]:
        index = needed.nonzero()[:, 0].to(step.latents.device)
        latents, out = step.latents[index], torch.zeros_like(step.latents)
        if self.base_pipeline is None:
            found, spent = self.predict(self._unet, latents, step, self._embeddings[index]), 1
        else:
            both = torch.cat([self._negatives[index], self._embeddings[index]])
            u, c = self.predict(self._base.unet, torch.cat([latents] * 2), step, both).chunk(2)
            found, spent = u + self.own_scale(step) * (c - u), 2
        if self.orthogonal:
            u = step.unconditional[index]
            found = u + without(found - u, step.conditional[index] - u)
        out[index] = found
        return out, spent

    def predict(self, unet: Any, latents: Tensor, step: DenoisingStep, embeddings: Tensor) -> Tensor:
        return unet(latents, step.timestep, encoder_hidden_states=embeddings, return_dict=False)[0]

    def leaving(self) -> Tensor:
        return self.transition.leaving()

    def transition_timestep(self) -> Tensor | None:
        return self.transition.transition_timestep()
