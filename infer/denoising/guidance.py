"""The guidance of one batch: which predictions a step needs, their mix under the rules, and the traces."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infer.denoising.hooks import DenoisingStep, GuidanceRule, rms


def onto(x: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting for what it is doing."""
    return x.to(device, non_blocking=True)


def times(scale: Tensor, x: Tensor) -> Tensor:
    """scale x per row, in x's precision; the scale itself is not rounded to it, as in stock pipelines."""
    return (onto(scale, x.device).float().view(-1, *[1] * (x.ndim - 1)) * x).to(x.dtype)


class NeededRows:
    """The rows of one model call: samples `index[:split]` unconditional, then `index[split:]` conditional."""

    def __init__(self, unconditional: Tensor, conditional: Tensor, device: torch.device):
        """Both (B,) bool, on the CPU."""
        self.unconditional, self.conditional = unconditional, conditional
        self.split = int(unconditional.sum())
        self.index = onto(torch.cat([unconditional.nonzero()[:, 0], conditional.nonzero()[:, 0]]), device)
        self.has_unconditional, self.has_conditional = onto(unconditional, device), onto(conditional, device)
        self.given: tuple[Tensor, Tensor] | None = None

    def select(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """The rows' entries of two tensors (B, ...), in the order of the call."""
        return torch.cat([unconditional[self.index[: self.split]], conditional[self.index[self.split :]]])

    def texts(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """`select`, the same tensor again for the same two."""
        if self.given is None or self.given[0] is not unconditional or self.given[1] is not conditional:
            self.given = unconditional, conditional
            self.selected = self.select(unconditional, conditional)
        return self.selected

    def spread(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """u and c, (B, C, H, W), of the call's output; the other one, or 0, where one was not evaluated."""
        count = len(self.unconditional)
        if len(output) == 2 * count:
            return output.chunk(2)
        u, c = (output.new_zeros(count, *output.shape[1:]) for _ in range(2))
        u[self.index[: self.split]], c[self.index[self.split :]] = output[: self.split], output[self.split :]
        return (
            torch.where(self.has_unconditional.view(-1, 1, 1, 1), u, c),
            torch.where(self.has_conditional.view(-1, 1, 1, 1), c, u),
        )


@dataclass(frozen=True)
class Trace:
    """What happened, on the CPU: (B, steps), NaN where nothing was computed; magnitudes in epsilon space.

    `nfe` counts UNet rows per sample, `gradient_passes` those that were also differentiated, (B,) each;
    `transition_timestep`, (B,), is NaN for those that never passed
    it or were `gated`, (B,) bool: they had ordinary guidance. Both are None where no rule has a transition.
    """

    timesteps: Tensor
    unconditional_rms: Tensor
    conditional_rms: Tensor
    difference_rms: Tensor
    guidance_scale: Tensor
    nfe: Tensor
    gradient_passes: Tensor
    transition_timestep: Tensor | None
    gated: Tensor | None


class Guidance:
    """Of each step: `needed_rows`, then, with the model's output for them, `mix`. Waits for no device."""

    def __init__(
        self, rules: Sequence[GuidanceRule], batch_size: int, device: torch.device,
        nfe: Tensor | None = None, gradient_passes: Tensor | None = None,
    ):  # fmt: skip
        self.rules, self.batch_size, self.device = rules, batch_size, device
        none = torch.zeros(batch_size, dtype=torch.long)
        self.nfe = none if nfe is None else nfe
        self.gradient_passes = none.clone() if gradient_passes is None else gradient_passes
        self.rows: NeededRows | None = None  # the same for many steps
        self.steps: list[tuple[Tensor, ...]] = []  # (B,) tensors on the device

    def scale(self, step: DenoisingStep) -> Tensor:
        """s of each row after all rules, (B,)."""
        scale = torch.full((self.batch_size,), float(step.guidance_scale))
        for rule in self.rules:
            scale = rule.guidance_scale(step, scale)
        return scale

    def needed_rows(self, step: DenoisingStep) -> NeededRows:
        """A row at scale 0 needs its unconditional prediction only, a row at 1 the conditional one."""
        scale = self.scale(step)
        needs = [rows for rule in self.rules if (rows := rule.needs(step, scale)) is not None]
        needs = needs or [(scale != 1, scale != 0)]
        u, c = (torch.stack([rows.cpu() for rows in kind]).any(0) for kind in zip(*needs, strict=True))
        if self.rows is None or not (
            torch.equal(u, self.rows.unconditional) and torch.equal(c, self.rows.conditional)
        ):
            self.rows = NeededRows(u, c, self.device)
        return self.rows

    def mix(self, step: DenoisingStep, rows: NeededRows, output: Tensor) -> Tensor:
        """u + s (c - u), and what the rules make of it, (B, C, H, W); the step has its predictions then."""
        step.unconditional, step.conditional = rows.spread(output)
        self.nfe += rows.unconditional.long() + rows.conditional.long()
        for rule in self.rules:
            rule.observe(step)
        step.scale = scale = self.scale(step)
        prediction = step.unconditional + times(scale, step.conditional - step.unconditional)
        for rule in self.rules:
            prediction = rule.combine(step, prediction)
        self.record(step, rows, scale)
        return prediction

    def record(self, step: DenoisingStep, rows: NeededRows, scale: Tensor) -> None:
        has_u, has_c = rows.has_unconditional, rows.has_conditional
        timesteps = torch.full((self.batch_size,), step.timestep)
        u = torch.where(has_u, rms(step.epsilon(step.unconditional)), math.nan)
        c = torch.where(has_c, rms(step.epsilon(step.conditional)), math.nan)
        difference = torch.where(has_u & has_c, step.difference_rms, math.nan)
        self.steps.append((timesteps, u, c, difference, scale.float()))

    def trace(self) -> Trace:
        columns = [torch.stack(column, 1).cpu() for column in zip(*self.steps, strict=True)]
        timesteps = [rule.transition_timestep() for rule in self.rules]
        transitions = [timestep.cpu() for timestep in timesteps if timestep is not None]
        if not transitions:
            return Trace(*columns, self.nfe, self.gradient_passes, transition_timestep=None, gated=None)
        last = torch.stack(transitions).amin(0)  # the last transition gives the full scale
        gated = last.isinf()
        return Trace(*columns, self.nfe, self.gradient_passes, last.masked_fill(gated, math.nan), gated)
