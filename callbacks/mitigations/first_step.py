"""The model at the first step, and descent on what it is given, for rules that optimize an input."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from infer.denoising.hooks import Batch
from infer.denoising.schedulers import first_informative_step, noise_levels


@contextmanager
def frozen(unet: Any) -> Iterator[None]:
    """Gradients flow through the model to its inputs; its weights take none, and stay as they were."""
    weights = [weight for weight in getattr(unet, "parameters", tuple)() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def precise(x: Tensor) -> Tensor:
    """In single precision at least: steps of an optimizer are too small for less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def length(x: Tensor) -> Tensor:
    """RMS per sample, (B,), with a gradient also where x is 0, as for an empty prompt."""
    return (precise(x).flatten(1).square().mean(1) + 1e-20).sqrt()


class FirstStep:
    """eps_c - eps_u of a batch at the first step, in epsilon space and single precision; counts its rows.

    For v-prediction eps_c - eps_u = alpha (v_c - v_u). The first step is the first one with alpha > 0: at
    zero terminal SNR the difference is 0 whatever the prompt. The noise stands for x_t there.
    """

    def __init__(self, batch: Batch):
        scheduler, levels = batch.scheduler, noise_levels(batch.scheduler)
        index = first_informative_step(levels)
        self.batch, self.timestep = batch, scheduler.timesteps[index].to(batch.noise.device)
        self.alpha, self.sigma = levels[index]
        start = scheduler.init_noise_sigma * torch.ones(1, dtype=torch.float64)
        self.input_scale = float(scheduler.scale_model_input(start, scheduler.timesteps[0]))
        self.factor = 1.0 if scheduler.config.prediction_type == "epsilon" else self.alpha

    def output(self, noise: Tensor, embedding: Tensor, rows: Tensor) -> Tensor:
        """The model's output; `noise` has as many rows, or twice, as there are samples `rows`, on the CPU."""
        dtype = self.batch.noise.dtype
        self.batch.nfe[rows] += len(noise) // len(rows)
        latents = (noise * self.input_scale).to(dtype)
        output = self.batch.unet(
            latents, self.timestep, encoder_hidden_states=embedding.to(dtype), return_dict=False
        )[0]
        return precise(output)

    def difference(self, noise: Tensor, rows: Tensor) -> Tensor:
        """eps_c - eps_u of the samples `rows` at this noise, (n, C, H, W): two rows each."""
        own = rows.to(noise.device)
        embeddings = [self.batch.unconditional_embedding[own], self.batch.conditional_embedding[own]]
        u, c = self.output(torch.cat([noise, noise]), torch.cat(embeddings), rows).chunk(2)
        return self.factor * (c - u)

    def along(self, noise: Tensor, rows: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        """d(x) and d(x + radius d(x) / RMS(d(x))), d the difference, (n, C, H, W) each: 4 evaluations."""
        here = self.difference(noise, rows)
        return here, self.difference(noise + radius / length(here).view(-1, 1, 1, 1) * here, rows)


def descend(
    batch: Batch, start: Tensor, loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer], target: float, iterations: int, passes: int,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Optimize an input of each sample until its loss is at most `target`, or for so many iterations.

    A sample that is done is evaluated no more, and moves no more: a batch gives what its samples give alone.
    The gradient is that of the loss times sqrt(numel), for a root mean square that of the norm.

    Args:
        batch: whose model the loss evaluates, with its weights frozen.
        start: the input of each sample in `rows`, (n, ...).
        loss: (inputs, samples) -> (m,), for some of the samples.
        optimizer: of one leaf for each sample, in single precision at least.
        target: a sample whose loss is at most this is done.
        iterations: evaluations of the loss; a step follows each but the one that meets the target.
        passes: model rows of a sample that each gradient passes through.
        rows: the samples, (n,) on the CPU; None: all.

    Returns:
        The inputs, (n, ...), in the leaves' precision, and whether each met the target, (n,) bool.
    """
    rows = torch.arange(len(start)) if rows is None else rows
    leaves = [precise(x).clone().requires_grad_() for x in start.detach()]
    stepper, going = optimizer(leaves), torch.ones(len(rows), dtype=torch.bool)
    scale = batch.noise[0].numel()  # so large is the gradient of a mean's entries: half precision needs it
    with frozen(batch.unet):
        for _ in range(iterations):
            active = going.nonzero()[:, 0]
            losses = loss(torch.stack([leaves[n] for n in active]), rows[active])
            above = (losses > target).cpu()
            going[active[~above]] = False
            if not above.any():
                break
            moving = [leaves[n] for n in active[above]]
            gradients = torch.autograd.grad(scale * losses[above.to(losses.device)].sum(), moving)
            stepper.zero_grad()
            for leaf, gradient in zip(moving, gradients, strict=True):
                leaf.grad = gradient / math.sqrt(scale)
            stepper.step()
            batch.gradient_passes[rows[active[above]]] += passes
    return torch.stack([leaf.detach() for leaf in leaves]), ~going
