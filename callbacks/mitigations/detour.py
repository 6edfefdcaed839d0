"""Our own rule, the detour: while a sample waits for its transition, guide it somewhere else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.caption_bank import CaptionBank
from callbacks.mitigations.transition import Transition
from data.captioned import SHARD_SUFFIXES, shard_paths
from data.prompts import source_fingerprint
from data.sources.layouts import is_data
from infer.denoising.guidance import onto
from infer.denoising.hooks import DenoisingStep, Request
from infer.denoising.sampling import embed
from infer.models.pipeline import check_pipeline, fingerprint, load_pipeline


def without(g: Tensor, m: Tensor) -> Tensor:
    """g - max(0, <g, m> / <m, m>) m per sample, (B, ...): g without its part along m."""
    a, b = g.float(), m.float()  # half precision overflows in the sums
    share = (a * b).flatten(1).sum(1) / (b * b).flatten(1).sum(1).clamp(min=1e-12)
    return (a - share.clamp(min=0).view(-1, *[1] * (g.ndim - 1)) * b).to(g.dtype)


def check_base(name: str, base: Any, pipe: Any) -> None:
    """ValueError where the base model's predictions do not mean what those of the finetuned model mean."""
    scheduler = type(pipe.scheduler).from_config(base.scheduler.config)  # kinds differ in their last alpha
    kept, own_kept = scheduler.alphas_cumprod.cpu(), pipe.scheduler.alphas_cumprod.cpu()
    facts = [
        ("prediction_type", scheduler.config.prediction_type, pipe.scheduler.config.prediction_type),
        ("UNet's in_channels", base.unet.config.in_channels, pipe.unet.config.in_channels),
        ("VAE's scaling_factor", base.vae.config.scaling_factor, pipe.vae.config.scaling_factor),
        ("number of timesteps", len(kept), len(own_kept)),
    ]
    if len(kept) == len(own_kept) and not torch.allclose(kept, own_kept, rtol=1e-3, atol=1e-5):
        worst = int((kept - own_kept).abs().argmax())
        values = (f"{alphas[worst]:.4g}" for alphas in (kept, own_kept))
        facts.append((f"noise schedule (alphas_cumprod at timestep {worst})", *values))
    for what, theirs, ours in facts:
        if theirs != ours:
            raise ValueError(
                f"base_pipeline {name!r} does not go with the finetuned model: its {what} is {theirs}, "
                f"the finetuned model's {ours}; give the model that it was finetuned from"
            )


@contextmanager
def located(option: str) -> Iterator[None]:
    """Say whose file is missing: the path may come from a preset, and be used from another folder."""
    try:
        yield
    except FileNotFoundError as error:
        where = f"relative paths start from the current folder, {Path.cwd()}"
        raise FileNotFoundError(f"the detour's {option}: {error} ({where})") from error


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
    transition, and up to two more where r > 0 or the transition watches; the base model also costs the memory
    of its UNet and text encoder.

    Args:
        transition: when, and what a sample without an alternative does: its guidance_before.
        captions: ordinary prompts (what --prompts takes): the nearest one is the alternative, by the
            cosine of the text encoder's pooled embeddings.
        exclude: prompts that are no alternatives, nor are captions nearer to one of them than max_cosine: the
            training run's folder, for the captions that it made the model memorize.
        min_cosine: a nearest caption further than this is no alternative; null: 0.
        max_cosine: a caption nearer to the prompt than this is no alternative either (see also exclude);
            null: 0.99.
        prompt: one alternative for all prompts.
        base_pipeline: the model before the finetune, in place of the finetuned one.
        repulsion: r, how strongly to push away from the memorized direction while waiting; 0: not at all.
        orthogonal: leave out of the way towards the alternative what leads to the memorized image: with
            g = eps_n - eps_u and m = eps_c - eps_u per sample, g - max(0, <g, m> / <m, m>) m in place of g.
        scale: s, how strongly to guide towards the alternative while waiting; null: the run's guidance scale.
    """

    def __init__(
        self,
        transition: Transition,
        captions: str | None = None,
        exclude: str | None = None,
        min_cosine: float | None = None,
        max_cosine: float | None = None,
        prompt: str | None = None,
        base_pipeline: str | None = None,
        repulsion: float = 0.0,
        orthogonal: bool = False,
        scale: float | None = None,
    ):
        if sum(source is not None for source in (captions, prompt, base_pipeline)) > 1:
            raise ValueError("a detour goes one way: give one of captions, prompt and base_pipeline")
        for name, value in (("exclude", exclude), ("min_cosine", min_cosine), ("max_cosine", max_cosine)):
            if captions is None and value is not None:
                raise ValueError(f"{name} is for captions: give captions, or leave {name} out")
        if prompt is not None and not prompt.strip():
            raise ValueError(
                "the detour's prompt is empty: give a text, or a transition alone to guide nowhere"
            )
        if scale == 0 and repulsion == 0 and base_pipeline is None:
            raise ValueError(
                "a detour of scale 0 and repulsion 0 goes nowhere: it is its transition alone, so give that"
            )
        if not repulsion >= 0:
            raise ValueError(f"repulsion must be at least 0, not {repulsion}")
        low, high = 0.0 if min_cosine is None else min_cosine, 0.99 if max_cosine is None else max_cosine
        if not -1 <= low < high <= 1:
            raise ValueError(f"min_cosine {low} and max_cosine {high} must rise, within -1..1")
        if base_pipeline is not None:
            with located("base_pipeline"):
                check_pipeline(base_pipeline)
        self.transition = transition
        if self.transition.rehearsal or self.transition.ramp_timesteps:
            raise ValueError("a detour's transition is static or dynamic, without a ramp")
        self.captions, self.exclude = captions, exclude
        self.prompt, self.base_pipeline = prompt, base_pipeline
        self.min_cosine, self.max_cosine, self._within = min_cosine, max_cosine, (low, high)
        self.texts = [prompt] if prompt is not None else []
        self.repulsion, self.orthogonal, self.scale = repulsion, orthogonal, scale
        self.watched_space, self.continuation = self.transition.watched_space, self.transition.continuation
        self.forget()

    def forget(self) -> None:
        """Let go of the models and of what they made."""
        self._bank: CaptionBank | None = None
        self._base = self._unet = self._embeddings = self._negatives = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.forget()

    def contents(self) -> dict[str, str | None]:
        found = {}
        for option, read in (
            ("base_pipeline", fingerprint), ("captions", source_fingerprint), ("exclude", source_fingerprint)
        ):  # fmt: skip
            if source := getattr(self, option):
                with located(option):
                    found[option] = read(source)
        return found

    def check(
        self, timesteps: Sequence[float], guidance_scale: float, num_train_timesteps: int = 1000
    ) -> None:
        self.transition.check(timesteps, guidance_scale, num_train_timesteps)
        for option, source in (("captions", self.captions), ("exclude", self.exclude)):
            with located(option):
                if source and source.endswith(SHARD_SUFFIXES):
                    shard_paths(source)
                elif source and not (Path(source).exists() or is_data(source)):
                    raise FileNotFoundError(f"no prompts {source!r}")

    def check_requests(self, pipe: Any, requests: Sequence[Request]) -> None:
        if self.base_pipeline is not None:
            self.load_base(pipe)
            self._base = None  # a comparison checks many before the first runs
        own = self.base_pipeline is None and self.captions is None and self.prompt is None
        if own and not any(request.alternative_prompt for request in requests):
            raise ValueError(
                "the detour leads nowhere, no prompt has an alternative_prompt: give the prompt file that "
                "column, or the detour one of captions, prompt and base_pipeline"
            )

    def load_base(self, pipe: Any) -> None:
        """The base model on the CPU, without its VAE; ValueError where it does not go with the pipeline."""
        if self._base is None:
            base = load_pipeline(self.base_pipeline, dtype=pipe.unet.dtype)
            check_base(self.base_pipeline, base, pipe)
            base.vae = None
            self._base = base

    def load(self, pipe: Any, device: torch.device) -> None:
        """The base model or the captions, once."""
        if self.base_pipeline is not None:
            self.load_base(pipe)
            self._base.to(device)
        if self.captions is not None and self._bank is None:
            self._bank = CaptionBank.embed(pipe, device, self.captions, self.exclude, self._within[1])

    def on_predict_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.load(pl_module.pipe, pl_module.device)  # in no image's seconds

    def prepare(self, pipe: Any, requests: Sequence[Request], device: torch.device) -> None:
        """Find each prompt's alternative and embed it."""
        self.load(pipe, device)
        self._unet, prompts = pipe.unet, [request.prompt for request in requests]
        if self.base_pipeline is not None:
            negatives = [request.negative_prompt or "" for request in requests]
            self.alternatives = [self.base_pipeline] * len(requests)
            self._embeddings = embed(self._base, prompts, device)
            self._negatives = embed(self._base, negatives, device)
            return
        if self.captions is not None:
            self.alternatives = self._bank.nearest(prompts, *self._within)
        elif self.prompt is not None:
            self.alternatives = [self.prompt] * len(requests)
        else:
            self.alternatives = [request.alternative_prompt for request in requests]
        self._embeddings = embed(pipe, [text or "" for text in self.alternatives], device)

    def begin(self, batch_size: int, device: torch.device) -> None:
        self.transition.begin(batch_size, device)
        self._has = torch.tensor([text is not None for text in self.alternatives])

    def watches(self, step: DenoisingStep) -> bool:
        return self.transition.watches(step)

    def wants_both(self, step: DenoisingStep) -> Tensor | None:
        return self.on_the_way(step) if self.orthogonal else None

    def observe(self, step: DenoisingStep) -> None:
        self.transition.observe(step)

    def on_the_way(self, step: DenoisingStep) -> Tensor:
        """Samples that are guided towards their alternative at this step, (B,) bool."""
        waiting = self.transition.waiting(step)
        return waiting & onto(self._has, waiting.device)

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        plain = self.transition.guidance_scale(step, scale)
        return torch.where(self.on_the_way(step), -self.repulsion, plain)

    def alternative_scale(self, step: DenoisingStep) -> Tensor:
        scale = 1.0 if self.base_pipeline is not None else self.own_scale(step)
        return torch.where(self.on_the_way(step), scale, 0.0)

    def own_scale(self, step: DenoisingStep) -> float:
        return step.guidance_scale if self.scale is None else self.scale

    def alternative(self, step: DenoisingStep, needed: Tensor) -> tuple[Tensor, int]:
        index = onto(needed.nonzero()[:, 0], step.latents.device)
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
