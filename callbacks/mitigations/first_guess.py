"""Our own rule that needs no second model and no training images: the model's first guess tells a copy."""

import math
from collections.abc import Sequence

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.first_step import FirstStep, precise
from callbacks.mitigations.guidance.latent_bounds import clean_image
from callbacks.mitigations.static_transition import StaticTransition
from data.ranges import FiniteFloat
from infer.denoising.guidance import times
from infer.denoising.hooks import Batch, DenoisingStep, GuidanceRule, layout
from infer.denoising.noise import standard_normal


class Watch(GuidanceRule):
    """Compares each sample with its guess once, and evaluates a copy no more after that.

    At the first step from `timestep` on that has the run's whole scale, or at the last step.
    """

    def __init__(self, guess: Tensor, threshold: float, timestep: float):
        """`guess` is a layout, (B, C H W). `cosine`, (B,), on the CPU, is NaN until a sample is compared."""
        self.guess, self.threshold, self.timestep = guess, threshold, timestep
        self.cosine = torch.full((len(guess),), math.nan)

    @property
    def copies(self) -> Tensor:
        """(B,) bool."""
        return self.cosine >= self.threshold

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self.copies.any():
            return None
        going = ~self.copies.to(scale.device)
        return going & (scale != 1), going & (scale != 0)

    def after_step(self, step: DenoisingStep, before: Tensor, after: Tensor) -> Tensor:
        if step.timestep > self.timestep or not (waiting := self.cosine.isnan()).any():
            return after
        guided = step.scale.cpu() >= step.guidance_scale
        due = waiting & (guided | (step.index == len(step.timesteps) - 1))
        if due.any():
            prediction = step.unconditional + times(step.scale, step.conditional - step.unconditional)
            cosine = (layout(clean_image(step, prediction)) * self.guess).sum(1)
            self.cosine = torch.where(due, cosine.cpu(), self.cosine)
        return after


class FirstGuess(Mitigation):
    """An image that the model guesses from noise alone is made again, each time with a later transition.

    From pure noise, a model that memorized a prompt's image predicts that image in one step (Webster 2023,
    arXiv:2305.08694, one-step extraction); of another prompt it predicts a blur. A sample's guess is the mean
    over `guesses` noises z of x_0(z) by the conditional prediction at the first step, for epsilon
    x_0 = (z - sigma eps_c) / alpha. At `timestep` the sample's predicted x_0 is compared with its guess: the
    cosine of both, each channel less its mean. Where another mitigation holds guidance back for longer, they
    are compared once the sample has its whole scale, or at the last step. From `threshold` on the sample is
    in the basin: it is abandoned, and begins again from other noise, with `guidance_before` until the first
    of `transitions`; if that does not lead it out, until the second, and so on. So each sample gets the
    mildest transition that suffices, and one that is in no basin ordinary guidance (or that of the
    mitigations that this one is combined with). The last attempt is kept as it is.

    Costs `guesses` evaluations a sample, and for each further attempt those of a run (for one that is
    abandoned, of its steps until then). Needs no base model, no training images and no gradients.

    `python -m infer calibrate --mitigation first_guess --ordinary FILE` finds a model's threshold.

    Args:
        transitions: timestep of the transition of each further attempt, the mildest first; those before the
            schedule's first timestep are left out.
        guidance_before: scale before these transitions: 0 none, negative opposite.
        guesses: noises whose predictions are averaged.
        threshold: cosine from which on a sample is its guess.
        timestep: where they are compared: once it is settled what is where, and after all transitions but the
            last.
    """

    calibrated = ("threshold",)

    def __init__(
        self,
        transitions: list[NonNegativeFloat] = [960, 930, 900, 870, 840, 800, 750, 600],  # noqa: B006
        guidance_before: FiniteFloat = -2.0,
        guesses: PositiveInt = 8,
        threshold: FiniteFloat = 0.5,
        timestep: NonNegativeFloat = 700,
    ):
        if not transitions:
            raise ValueError("the first guess: transitions are empty, and each is a further attempt")
        if early := [t for t in transitions[:-1] if t <= timestep]:
            raise ValueError(
                f"the first guess compares at timestep {timestep:g}, before the transition at {early[0]:g}: "
                "only the last one may be so late"
            )
        self.transitions, self.guidance_before, self.guesses = transitions, guidance_before, guesses
        self.threshold, self.timestep = threshold, timestep
        self.forget()

    @property
    def cosine(self) -> Tensor:
        """Of each sample of the last batch with its guess, in its first attempt, (B,)."""
        return self._watch.cosine

    def forget(self) -> None:
        self._batch: Batch | None = None
        self._watch: Watch | None = None

    def attempts(self, first_timestep: float) -> list[StaticTransition]:
        """The rule of each further attempt, for a schedule that begins at this timestep."""
        return [StaticTransition(t, self.guidance_before) for t in self.transitions if t < first_timestep]

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        first, last = timesteps[0], timesteps[-1]
        if not (attempts := self.attempts(first)) or not last <= self.timestep < first:
            raise ValueError(
                f"the first guess compares at timestep {self.timestep:g} and has transitions down to "
                f"{self.transitions[-1]:g}: outside of the schedule, which runs from {first:g} to {last:g}"
            )
        for attempt in attempts:
            attempt.check(timesteps, guidance_scale)

    def before_denoising(self, batch: Batch) -> None:
        first, total = FirstStep(batch), torch.zeros_like(precise(batch.noise))
        generators, rows = batch.own_generators("first guess"), torch.arange(len(total))
        kind = batch.scheduler.config.prediction_type
        for _ in range(self.guesses):
            noise = standard_normal(generators, total.shape[1:]).to(total)
            output = first.output(noise, batch.conditional_embedding, rows)
            step = DenoisingStep(0, float(first.timestep), (), noise, first.alpha, first.sigma, kind, 1.0)
            total += clean_image(step, output)
        self._batch, self._watch = batch, self.watch(layout(total))

    def watch(self, guess: Tensor) -> Watch:
        return Watch(guess, self.threshold, self.timestep)

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor] | None:
        return self._watch.needs(step, scale)

    def after_step(self, step: DenoisingStep, before: Tensor, after: Tensor) -> Tensor:
        after = self._watch.after_step(step, before, after)
        if self._watch.copies.any() and step.index == len(step.timesteps) - 1:
            rows = self._watch.copies.nonzero()[:, 0]
            after = after.index_copy(0, rows.to(after.device), self.made_again(rows).to(after))
        return after

    def made_again(self, rows: Tensor) -> Tensor:
        """The final latents of these samples' further attempts, (n, C, H, W); `rows` is on the CPU."""
        batch, guess = self._batch, self._watch.guess
        made, waiting = batch.noise[rows.to(batch.noise.device)].clone(), torch.arange(len(rows))
        attempts = self.attempts(float(batch.scheduler.timesteps[0]))
        for number, attempt in enumerate(attempts, 2):
            own = rows[waiting]
            generators = batch.own_generators(f"attempt {number}")
            noise = standard_normal([generators[row] for row in own], made.shape[1:]).to(made)
            watch = self.watch(guess[own.to(guess.device)])
            rules = [attempt] if attempt is attempts[-1] else [attempt, watch]
            made[waiting.to(made.device)] = batch.denoise(rules, own, noise).latents
            waiting = waiting[watch.copies]
            if not len(waiting):
                break
        return made
