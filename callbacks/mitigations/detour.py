"""Our own rule, the detour: guides a sample towards an alternative while it waits for its transition."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.caption_bank import CaptionBank
from callbacks.mitigations.guidance.ordinary_guidance import inner, per_sample, predict
from callbacks.mitigations.transition import Transition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from data.cli import warn_no_effect
from data.prompts import same
from data.prompts.fingerprint import source_fingerprint
from data.ranges import FiniteFloat
from data.sources.layouts import is_data
from data.sources.rows import matching_files
from data.sources.shards import SHARD_SUFFIXES
from infer.denoising.guidance import onto
from infer.denoising.hooks import Batch, DenoisingStep, Request
from infer.denoising.sampling import embed
from infer.models.lora_switch import has_factors, without_lora
from infer.models.pipeline import check_pipeline, fingerprint, load_pipeline, training_run_of

NO_LORA = "the model without its LoRA"


def without(g: Tensor, m: Tensor) -> Tensor:
    """g - max(0, <g, m> / <m, m>) m per sample, (B, ...): g without its part along m."""
    a, b = g.float(), m.float()  # half precision overflows in the sums
    share = inner(a, b) / inner(b, b).clamp(min=1e-12)
    return (a - per_sample(share.clamp(min=0), b) * b).to(g.dtype)


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
    """Name the option of a missing file: its path may come from a preset, written for another folder."""
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

    At most one of captions, prompt, base_pipeline and without_lora; without them, each prompt's own
    alternative is taken from the column `alternative_prompt` of the prompt file. Costs two predictions a step
    before the transition, and up to two more where r > 0 or the transition watches; a base_pipeline also
    costs the memory of its UNet and text encoder, without_lora only that of the LoRA's factors.

    Args:
        transition: when, and what a sample without an alternative does: its guidance_before. Static or
            dynamic.
        captions: ordinary prompts (what --prompts takes): the nearest one is the alternative, by the cosine
            of the text encoder's pooled embeddings.
        exclude: prompts that are no alternatives, nor are captions nearer to one of them than max_cosine;
            null: what the model was trained to memorize, by the training run that its pipeline lies in.
        min_cosine: a nearest caption further than this is no alternative.
        max_cosine: a caption nearer to the prompt than this is no alternative either (see also exclude).
        prompt: one alternative for all prompts.
        base_pipeline: the model before the finetune, which replaces the finetuned one.
        without_lora: the same for a model with --model.lora: the UNet and text encoder themselves, with the
            LoRA switched off.
        repulsion: r, the scale away from the memorized direction while waiting; 0: none.
        orthogonal: leave out of the way towards the alternative what leads to the memorized image: with
            g = eps_n - eps_u and m = eps_c - eps_u per sample, g - max(0, <g, m> / <m, m>) m replaces g.
    """

    alternatives = []

    def __init__(
        self,
        transition: Transition,
        captions: str | None = None,
        exclude: str | None = None,
        min_cosine: FiniteFloat = 0.0,
        max_cosine: FiniteFloat = 0.99,
        prompt: str | None = None,
        base_pipeline: str | None = None,
        without_lora: bool = False,
        repulsion: NonNegativeFloat = 0.0,
        orthogonal: bool = False,
    ):
        if sum(source is not None for source in (captions, prompt, base_pipeline)) + without_lora > 1:
            raise ValueError(
                "a detour has one alternative: give one of captions, prompt, base_pipeline and without_lora"
            )
        if isinstance(transition, TwoPassTransition):
            raise ValueError("a detour's transition is static or dynamic")
        if not -1 <= min_cosine < max_cosine <= 1:
            raise ValueError(f"min_cosine {min_cosine} and max_cosine {max_cosine} must rise, within -1..1")
        if captions is None and (exclude, min_cosine, max_cosine) != (None, 0.0, 0.99):
            warn_no_effect("the detour's exclude, min_cosine or max_cosine", "there are no captions")
        if base_pipeline is not None:
            with located("base_pipeline"):
                check_pipeline(base_pipeline)
        self.transition, self.watched_space = transition, transition.watched_space
        self.captions, self.exclude = captions, exclude
        self.min_cosine, self.max_cosine = min_cosine, max_cosine
        self.prompt, self.base_pipeline, self.without_lora = prompt, base_pipeline, without_lora
        self.texts = [prompt] if prompt is not None else []
        self.repulsion, self.orthogonal = repulsion, orthogonal
        self.forget()

    def forget(self) -> None:
        """Release the models and their embeddings."""
        self._bank: CaptionBank | None = None
        self._base = self._pipe = self._batch = self._embeddings = self._negatives = None

    def contents(self) -> dict[str, str | None]:
        readers = {
            "base_pipeline": fingerprint, "captions": source_fingerprint, "exclude": source_fingerprint
        }  # fmt: skip
        fingerprints = {}
        for option, read in readers.items():
            if source := getattr(self, option):
                with located(option):
                    fingerprints[option] = read(source)
        return fingerprints

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        self.transition.check(timesteps, guidance_scale)
        for option, source in (("captions", self.captions), ("exclude", self.exclude)):
            with located(option):
                if source and source.endswith(SHARD_SUFFIXES):
                    matching_files(source)
                elif source and not (Path(source).exists() or is_data(source)):
                    raise FileNotFoundError(f"no prompts {source!r}")

    def check_requests(self, pipe: Any, requests: Sequence[Request]) -> None:
        if self.base_pipeline is not None:
            self.load_base(pipe)
            self._base = None  # a comparison checks many before the first runs
        if self.without_lora and not has_factors(pipe):
            raise ValueError(
                "the detour's without_lora: this model has no LoRA to switch off; give --model.lora, and the "
                "base model as --model.pipeline (a training run keeps its LoRA in pipeline/lora)"
            )
        if self.has_base or self.captions is not None:
            return
        alternatives = [self.prompt or request.alternative_prompt for request in requests]
        if not any(alternatives):
            raise ValueError(
                "the detour leads nowhere, no prompt has an alternative_prompt: give the prompt file that "
                "column, or the detour one of captions, prompt, base_pipeline and without_lora"
            )
        own = sum(same(a) == same(r.prompt) for a, r in zip(alternatives, requests, strict=True) if a)
        if own:
            warn_no_effect("the detour", f"{own} of {len(requests)} images have their prompt as alternative")

    @property
    def has_base(self) -> bool:
        """Whether the alternative is the base model, with all of its own guidance."""
        return self.base_pipeline is not None or self.without_lora

    def base_model(self) -> AbstractContextManager[Any]:
        """The base model, within the block."""
        return without_lora(self._pipe) if self.without_lora else nullcontext(self._base)

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
            exclude = self.exclude or (run := training_run_of(pipe)) and str(run)
            self._bank = CaptionBank.embed(pipe, device, self.captions, exclude, self.max_cosine)

    def on_predict_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.load(pl_module.pipe, pl_module.device)  # before the first image's seconds

    def prepare(self, pipe: Any, requests: Sequence[Request], device: torch.device) -> None:
        """Choose each prompt's alternative and embed it."""
        self.load(pipe, device)
        self._pipe = pipe
        prompts = [request.prompt for request in requests]
        if self.has_base:
            self.alternatives = [self.base_pipeline or NO_LORA] * len(requests)
            with self.base_model() as base:
                self._embeddings = embed(base, prompts, device)
                self._negatives = embed(base, [r.negative_prompt or "" for r in requests], device)
            return
        if self.captions is not None:
            self.alternatives = self._bank.nearest(prompts, self.min_cosine, self.max_cosine)
        elif self.prompt is not None:
            self.alternatives = [self.prompt] * len(requests)
        else:
            self.alternatives = [request.alternative_prompt for request in requests]
        self._embeddings = embed(pipe, [text or "" for text in self.alternatives], device)

    def begin(self, batch_size: int, device: torch.device) -> None:
        self.transition.begin(batch_size, device)
        self._has = onto(torch.tensor([text is not None for text in self.alternatives]), device)

    def before_denoising(self, batch: Batch) -> None:
        self._batch = batch

    def detoured(self, step: DenoisingStep) -> Tensor:
        """Samples that are guided towards their alternative at this step, (B,) bool."""
        waiting = self.transition.waiting(step)
        return waiting & self._has.to(waiting.device)

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        plain = self.transition.guidance_scale(step, scale)
        return torch.where(self.detoured(step), -self.repulsion, plain)

    def alternative_scale(self, step: DenoisingStep) -> float:
        """a in u - r (c - u) + a (n - u): the base model's n holds its scale already."""
        return 1.0 if self.has_base else step.guidance_scale

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor]:
        if (watched := self.transition.needs(step, scale)) is not None:
            return watched
        detoured, scale = self.detoured(step).cpu(), scale.cpu()
        u_left = self.orthogonal or self.alternative_scale(step) - self.repulsion != 1  # u's factor is not 0
        c_left = self.orthogonal or self.repulsion != 0
        return torch.where(detoured, u_left, scale != 1), torch.where(detoured, c_left, scale != 0)

    def observe(self, step: DenoisingStep) -> None:
        self.transition.observe(step)

    def combine(self, step: DenoisingStep, prediction: Tensor) -> Tensor:
        detoured, scale = self.detoured(step).cpu(), self.alternative_scale(step)
        if scale == 0 or not detoured.any():
            return prediction
        index = onto(detoured.nonzero()[:, 0], prediction.device)
        u = step.unconditional[index]
        direction = self.alternative(step, index) - u
        self._batch.nfe += detoured * (2 if self.has_base else 1)
        if self.orthogonal:
            direction = without(direction, step.conditional[index] - u)
        return prediction.index_add(0, index, (scale * direction).to(prediction.dtype))

    def alternative(self, step: DenoisingStep, index: Tensor) -> Tensor:
        """n of these samples."""
        latents = step.latents[index]
        if not self.has_base:
            return predict(self._batch.unet, latents, step, self._embeddings[index])
        embeddings = torch.cat([self._negatives[index], self._embeddings[index]])
        with self.base_model() as base:
            u, c = predict(base.unet, torch.cat([latents] * 2), step, embeddings).chunk(2)
        return u + step.guidance_scale * (c - u)

    def transition_timestep(self) -> Tensor | None:
        return self.transition.transition_timestep()
