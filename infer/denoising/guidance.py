"""One batch's guidance: which predictions a step needs, what the rules make of them, and the traces."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infer.denoising.hooks import DenoisingStep, GuidanceRule, rms


def onto(x: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting for what it is doing."""
    return x.to(device, non_blocking=True)


@dataclass(frozen=True)
class Rows:
    """The rows of one model call: samples `index[:split]` unconditional, `index[split:]` conditional."""

    unconditional: Tensor  # (B,) bool, CPU
    conditional: Tensor
    index: Tensor  # on the device
    split: int
    device_unconditional: Tensor  # (B,) bool, on the device
    device_conditional: Tensor

    @classmethod
    def select(cls, unconditional: Tensor, conditional: Tensor, device: torch.device) -> "Rows":
        index = torch.cat([unconditional.nonzero()[:, 0], conditional.nonzero()[:, 0]])
        return cls(
            unconditional, conditional, onto(index, device), int(unconditional.sum()),
            onto(unconditional, device), onto(conditional, device),
        )  # fmt: skip

    def serves(self, unconditional: Tensor, conditional: Tensor) -> bool:
        return torch.equal(self.unconditional, unconditional) and torch.equal(self.conditional, conditional)

    def pick(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """The rows' entries of two tensors (B, ...), in the order of the call."""
        return torch.cat([unconditional[self.index[: self.split]], conditional[self.index[self.split :]]])


@dataclass(frozen=True)
class Trace:
    """What happened, on the CPU: (B, steps), NaN where nothing was computed; magnitudes in epsilon space.

    `timesteps` is NaN where a sample did not take the step; `nfe` counts model rows per sample, (B,);
    `transition_timestep`, (B,), is NaN for those that never passed it or were `gated`, (B,) bool: they had
    ordinary guidance from the start. Both are None where no rule has a transition.
    """

    timesteps: Tensor
    unconditional_rms: Tensor
    conditional_rms: Tensor
    difference_rms: Tensor
    guidance_scale: Tensor
    nfe: Tensor
    transition_timestep: Tensor | None
    gated: Tensor | None


class Guidance:
    """Decides, evaluates and mixes the predictions of `count` samples, step by step."""

    def __init__(self, rules: Sequence[GuidanceRule], count: int, device: torch.device):
        self.rules, self.count, self.device = rules, count, device
        self.nfe = torch.zeros(count, dtype=torch.long)
        self.rows: Rows | None = None  # the same for many steps
        self.steps: list[tuple[Tensor, ...]] = []  # (B,) tensors on the device: no step waits for it
        for rule in rules:
            rule.begin(count, device)

    def trace(self) -> Trace:
        columns = [torch.stack(column, 1).cpu() for column in zip(*self.steps, strict=True)]
        transitions = [
            found.cpu() for rule in self.rules if (found := rule.transition_timestep()) is not None
        ]
        if not transitions:
            return Trace(*columns, nfe=self.nfe, transition_timestep=None, gated=None)
        last = torch.stack(transitions).amin(0)  # the last to let go
        gated = last.isinf()
        return Trace(*columns, self.nfe, last.masked_fill(gated, math.nan), gated)

    def decide(self, step: DenoisingStep) -> tuple[Tensor, Tensor | None]:
        """s and a of each row, (B,), after all rules."""
        scale, push = torch.full((self.count,), float(step.guidance_scale)), None
        for rule in self.rules:
            scale = rule.guidance_scale(step, scale)
            push = rule.alternative_scale(step) if push is None else push
        return scale, push

    def __call__(
        self,
        step: DenoisingStep,
        predict: Callable[[Rows], Tensor],
        active: Tensor | None = None,
        observe: bool = True,
    ) -> Tensor:
        """u + s (c - u) + a (n - u), (B, C, H, W).

        Args:
            step: without predictions; has them afterwards.
            predict: the model's output for the rows.
            active: (B,) bool on the CPU; rows outside of it are not evaluated: what they get means nothing.
            observe: whether the rules look.
        """
        active = torch.ones(self.count, dtype=torch.bool) if active is None else active
        scale, push = self.decide(step)
        if observe and any(rule.watches(step) for rule in self.rules):
            need_u = need_c = active  # whatever the scales: they stay on the device
        elif not observe and step.guidance_scale not in (0, 1):
            need_u = need_c = active  # after their transition: nor do these wait for it
        else:
            need_u = active & ((scale if push is None else scale + push) != 1).cpu()
            need_c = active & (scale != 0).cpu()
            for rule in self.rules:
                if (both := rule.wants_both(step)) is not None:
                    need_u, need_c = need_u | (active & both.cpu()), need_c | (active & both.cpu())
        if self.rows is None or not self.rows.serves(need_u, need_c):
            self.rows = Rows.select(need_u, need_c, self.device)
        evaluate(step, self.rows, predict)
        self.nfe += need_u.long() + need_c.long()
        if observe:
            for rule in self.rules:
                rule.observe(step)
            scale, push = self.decide(step)
        apart = push is not None and observe  # nobody is on a detour after the transition
        alternative = self.evaluate_alternative(step, push, active) if apart else None
        self.record(step, scale, active)
        guided = step.unconditional + times(scale, step.conditional - step.unconditional)
        if alternative is not None:
            guided = guided + times(push, alternative - step.unconditional)
        return guided

    def evaluate_alternative(self, step: DenoisingStep, push: Tensor, active: Tensor) -> Tensor | None:
        """n where a is not 0; it also stands in for predictions that such a row went without."""
        needed = active & (push != 0).cpu()
        if not needed.any():
            return None
        rule = next(rule for rule in self.rules if rule.alternative_scale(step) is not None)
        alternative, spent = rule.alternative(step, needed)
        self.nfe += spent * needed.long()
        missing = onto(needed & ~self.rows.unconditional, self.device).view(-1, 1, 1, 1)
        step.unconditional = torch.where(missing, alternative, step.unconditional)
        missing = onto(needed & ~self.rows.conditional, self.device).view(-1, 1, 1, 1)
        step.conditional = torch.where(missing, step.unconditional, step.conditional)
        return torch.where(onto(needed, self.device).view(-1, 1, 1, 1), alternative, step.unconditional)

    def record(self, step: DenoisingStep, scale: Tensor, active: Tensor) -> None:
        """Magnitudes in epsilon space and the applied scale, without waiting for the device."""
        has_u, has_c = self.rows.device_unconditional, self.rows.device_conditional
        alive = onto(active, self.device)
        nan = torch.full((self.count,), math.nan, device=self.device)
        self.steps.append(
            (
                torch.where(alive, step.timestep, nan),
                torch.where(has_u, rms(step.epsilon(step.unconditional)), nan),
                torch.where(has_c, rms(step.epsilon(step.conditional)), nan),
                torch.where(has_u & has_c, step.difference_rms, nan),
                torch.where(alive, onto(scale, self.device).float(), nan),
            )
        )


def times(scale: Tensor, x: Tensor) -> Tensor:
    """scale x per row, in x's precision; the scale itself is not rounded to it, as in stock pipelines."""
    return (onto(scale, x.device).float().view(-1, *[1] * (x.ndim - 1)) * x).to(x.dtype)


def evaluate(step: DenoisingStep, rows: Rows, predict: Callable[[Rows], Tensor]) -> None:
    """Run the model on the rows and put the predictions on the step."""
    if not len(rows.index):
        step.unconditional = step.conditional = torch.zeros_like(step.latents)
        return
    output = predict(rows)
    if len(rows.index) == 2 * len(step.latents):
        step.unconditional, step.conditional = output.chunk(2)
        return
    split, index = rows.split, rows.index
    unconditional, conditional = torch.zeros_like(step.latents), torch.zeros_like(step.latents)
    unconditional[index[:split]], conditional[index[split:]] = output[:split], output[split:]
    has_u = rows.device_unconditional.view(-1, 1, 1, 1)
    has_c = rows.device_conditional.view(-1, 1, 1, 1)
    step.unconditional = torch.where(has_u, unconditional, conditional)
    step.conditional = torch.where(has_c, conditional, unconditional)
