"""Our own rule that needs no second model and no training images: the model's first guess tells a copy."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.first_step import FirstStep, precise
from callbacks.mitigations.guidance.latent_bounds import clean_image
from callbacks.mitigations.transition import Transition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from data.ranges import FiniteFloat
from infer.denoising.guidance import times
from infer.denoising.hooks import Batch, DenoisingStep
from infer.denoising.noise import standard_normal


def layout(latents: Tensor) -> Tensor:
    """Latents less the mean of each channel, at unit length, (B, C H W): what is where, not which colours."""
    latents = precise(latents)
    return F.normalize((latents - latents.mean((2, 3), keepdim=True)).flatten(1))


class FirstGuess(Mitigation):
    """An image that is what the model guessed from noise alone is made again, from other noise.

    From pure noise a model that memorized a prompt's image predicts that image in one step (Webster 2023,
    arXiv:2305.08694, "one-step extraction"); of another prompt it predicts a blur. The guess of a sample is
    the mean over `guesses` noises z of x_0(z) by the conditional prediction at the first step,
    x_0 = (z - sigma eps_c) / alpha. At `timestep` the sample's own predicted x_0 is compared with it: the
    cosine of both, each channel less its mean. Above `threshold` the sample is in the basin: it is abandoned,
    and made again from other noise under the rule `again`, until its image is below the threshold, `attempts`
    times in all; then the attempt of the lowest cosine is kept. Everything else has ordinary guidance, or
    that of the mitigations which this one is combined with.

    Costs `guesses` evaluations a sample, and a run for each further attempt; no gradients. Needs neither the
    base model nor the training images.

    Args:
        again: rule of further attempts: a static or dynamic transition.
        guesses: noises whose predictions are averaged.
        threshold: cosine above which a sample is a copy of the guess.
        timestep: where a sample is compared: once it is settled what is where, and after the transition of a
            rule that this one is combined with.
        attempts: how often a sample is made at most, the first time included.
    """

    def __init__(
        self,
        again: Transition,
        guesses: PositiveInt = 8,
        threshold: FiniteFloat = 0.5,
        timestep: NonNegativeFloat = 500,
        attempts: PositiveInt = 4,
    ):
        if isinstance(again, TwoPassTransition):
            raise ValueError("the first guess: its rule `again` is a static or dynamic transition")
        if attempts < 2:
            raise ValueError("the first guess: attempts must be 2 or more, the first time included")
        self.again, self.guesses, self.threshold = again, guesses, threshold
        self.timestep, self.attempts = timestep, attempts

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        self.again.check(timesteps, guidance_scale)
        if not timesteps[-1] <= self.timestep < timesteps[0]:
            raise ValueError(
                f"the first guess: timestep {self.timestep:g} is not within the schedule's, which run from "
                f"{timesteps[0]:g} to {timesteps[-1]:g}"
            )

    def begin(self, batch_size: int, device: torch.device) -> None:
        self._abandoned = torch.zeros(batch_size, dtype=torch.bool)
        self._images: Tensor | None = None  # of the abandoned samples, (B, C, H, W)
        self._compared = False

    def before_denoising(self, batch: Batch) -> None:
        self._batch, first = batch, FirstStep(batch)
        generators, rows = batch.own_generators("first guess"), torch.arange(len(batch.noise))
        total = torch.zeros_like(precise(batch.noise))
        for _ in range(self.guesses):
            noise = standard_normal(generators, total.shape[1:]).to(total)
            output = first.output(noise, batch.conditional_embedding, rows)
            if batch.scheduler.config.prediction_type == "epsilon":
                total += (noise - first.sigma * output) / first.alpha
            else:
                total += first.alpha * noise - first.sigma * output
        self._guess = layout(total)

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor] | None:
        """No prediction of an abandoned sample."""
        if not self._abandoned.any():
            return None
        going = ~self._abandoned.to(scale.device)
        return going & (scale != 1), going & (scale != 0)

    def after_step(self, step: DenoisingStep, before: Tensor, after: Tensor) -> Tensor:
        if not self._compared and step.timestep <= self.timestep:
            self._compared = True
            prediction = step.unconditional + times(step.scale, step.conditional - step.unconditional)
            copies = self.cosine(clean_image(step, prediction)) > self.threshold
            if copies.any():
                self._abandoned = copies.cpu()
                self._images = self.made_again(self._abandoned.nonzero()[:, 0], after)
        if self._images is not None and step.index == len(step.timesteps) - 1:
            return torch.where(self._abandoned.to(after.device).view(-1, 1, 1, 1), self._images, after)
        return after

    def cosine(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Of the images of these samples with their guesses, (B,)."""
        guess = self._guess if rows is None else self._guess[rows.to(self._guess.device)]
        return (layout(images) * guess).sum(1)

    def made_again(self, rows: Tensor, like: Tensor) -> Tensor:
        """The images of these samples, in a tensor like that of the batch, (B, C, H, W)."""
        images, lowest = torch.zeros_like(like), torch.full((len(like),), torch.inf)
        for attempt in range(2, self.attempts + 1):
            generators = self._batch.own_generators(f"attempt {attempt}")
            noise = standard_normal([generators[row] for row in rows], like.shape[1:]).to(self._batch.noise)
            made = self._batch.denoise([self.again], rows, noise).latents
            cosine = self.cosine(made, rows).cpu()
            nearer = cosine < lowest[rows]
            images[rows[nearer].to(like.device)] = made[nearer.to(like.device)]
            lowest[rows] = torch.minimum(lowest[rows], cosine)
            rows = rows[cosine > self.threshold]
            if not len(rows):
                break
        return images
