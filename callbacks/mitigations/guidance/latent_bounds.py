"""Bounds of latents, of their updates and of predicted images, measured on ordinary prompts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.guidance.ordinary_guidance import per_sample
from data.batches import in_batches, spread
from data.prompts import Prompt, load_ordinary
from data.prompts.fingerprint import source_fingerprint
from infer.denoising.hooks import Batch, DenoisingStep, GuidanceRule, Request, rms
from infer.denoising.loop import denoise
from infer.denoising.noise import initial_noise, sample_seed
from infer.denoising.sampling import embed


class Bounds(NamedTuple):
    """Mean and standard deviation over samples of one quantity, at each step, (steps,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Bounds":
        """From (samples, steps)."""
        return cls(values.mean(0), values.std(0, correction=0))

    def clamp(self, index: int, values: Tensor, gamma: float) -> Tensor:
        """The values of step `index` within mean +- gamma std, and not below 0."""
        width = gamma * self.std[index]
        return values.clamp((self.mean[index] - width).clamp(min=0), self.mean[index] + width)


def clean_image(step: DenoisingStep, output: Tensor) -> Tensor:
    """x_0 by a model output (noise or v), (B, C, H, W), in single precision."""
    x, output = step.latents.float(), output.float()
    if step.prediction_type == "epsilon":
        return (x - step.sigma * output) / step.alpha
    return step.alpha * x - step.sigma * output


def output_of(step: DenoisingStep, image: Tensor) -> Tensor:
    """The model output that means this x_0: the inverse of `clean_image`."""
    x = step.latents.float()
    if step.prediction_type == "epsilon":
        return (x - step.alpha * image) / step.sigma
    return (step.alpha * x - image) / step.sigma


def resized(x: Tensor, size: Tensor) -> Tensor:
    """x with this RMS per sample, (B,)."""
    return (x.float() * per_sample(size / rms(x).clamp(min=1e-12), x)).to(x.dtype)


class Recorder(GuidanceRule):
    """Changes nothing: keeps the RMS of x_0, of the update and of the latents after it, (B,) each a step."""

    def __init__(self) -> None:
        self.image, self.update, self.latents = [], [], []

    def combine(self, step: DenoisingStep, prediction: Tensor) -> Tensor:
        self.image.append(rms(clean_image(step, prediction)))
        return prediction

    def after_step(self, step: DenoisingStep, before: Tensor, after: Tensor) -> Tensor:
        self.update.append(rms(after - before))
        self.latents.append(rms(after))
        return after


class LatentBounds(Mitigation):
    """What the two strengths share: the bounds, and when they are measured.

    Args:
        ordinary: prompts that are not memorized (what --prompts takes); those of the run are left out.
        gamma: half the width of the stable region, in standard deviations.
        count: so many of the ordinary prompts, evenly over the source.
    """

    def __init__(self, ordinary: str, gamma: NonNegativeFloat = 3.0, count: PositiveInt = 64):
        self.ordinary, self.gamma, self.count = ordinary, gamma, count
        self._prompts: list[Prompt] = []
        self.forget()

    def forget(self) -> None:
        """Release the embeddings and the bounds."""
        self._embed: Callable[[list[str]], Tensor] | None = None
        self._bounds: dict[Any, dict[str, Bounds]] = {}
        self._now: dict[str, Bounds] = {}

    def contents(self) -> dict[str, str | None]:
        return {"ordinary": source_fingerprint(self.ordinary)}

    def check_requests(self, pipe: Any, requests: Sequence[Request]) -> None:
        run = [Prompt(request.prompt_id, request.prompt) for request in requests]
        self._prompts = spread(load_ordinary(self.ordinary, run)[0], self.count)
        if len(self._prompts) < 2:
            raise ValueError(f"{self.ordinary!r} has one ordinary prompt: bounds need two or more")

    def prepare(self, pipe: Any, requests: Sequence[Request], device: torch.device) -> None:
        if not self._prompts:
            self.check_requests(pipe, requests)
        self._embed = lambda texts: embed(pipe, texts, device)

    def before_denoising(self, batch: Batch) -> None:
        """The bounds, from the first batch on."""
        key = (batch.noise.shape[1:], batch.guidance_scale, tuple(batch.scheduler.timesteps.tolist()))
        if key not in self._bounds:
            self._bounds[key] = self.calibrate(batch)
        self._now = self._bounds[key]

    def calibrate(self, batch: Batch) -> dict[str, Bounds]:
        """Bounds of the ordinary prompts' `image`, `update` and `latents`."""
        recorded: dict[str, list[Tensor]] = {"image": [], "update": [], "latents": []}
        for prompts in in_batches(self._prompts, len(batch.noise)):
            seeds = [sample_seed(0, prompt.id, 0) for prompt in prompts]
            noise, generators = initial_noise(seeds, batch.noise.shape[1:], batch.noise.dtype)
            embeddings = self._embed([""] * len(prompts)), self._embed([prompt.text for prompt in prompts])
            recorder = Recorder()
            denoise(
                batch.unet, batch.scheduler, noise.to(batch.noise.device), *embeddings,
                batch.guidance_scale, batch.scheduler.num_inference_steps, [recorder], generators,
            )  # fmt: skip
            for name, kept in recorded.items():
                kept.append(torch.stack(getattr(recorder, name), 1))
        return {name: Bounds.of(torch.cat(kept)) for name, kept in recorded.items()}
