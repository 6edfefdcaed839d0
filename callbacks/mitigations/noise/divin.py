"""DivIn: Langevin steps move the initial noise away from where the prompt changes the image most."""

from collections.abc import Callable

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.first_step import FirstStep, frozen
from infer.denoising.hooks import Batch
from infer.denoising.noise import standard_normal


def image_difference(output_difference: Tensor, alpha: float, sigma: float, prediction_type: str) -> Tensor:
    """x0_c - x0_u from the difference of the model's outputs, at one noise level.

    epsilon: x0 = (x - sigma eps) / alpha; v_prediction: x0 = alpha x - sigma v; flow_prediction:
    x0 = x - sigma v. With v it stays finite where alpha is 0.
    """
    return -sigma / (alpha if prediction_type == "epsilon" else 1.0) * output_difference


def langevin(
    noise: Tensor, difference: Callable[[Tensor], Tensor], xi: Tensor, beta: float, eta: float
) -> Tensor:
    """One step, (B, ...): x - eta (beta grad ||difference(x)||^2 + x) + sqrt(2 eta) xi, per sample.

    Its stationary density is exp(-beta ||difference(x)||^2 - ||x||^2 / 2): the standard normal where the
    difference does not depend on x. `difference` maps x to x0_c - x0_u, row by row.
    """
    with torch.enable_grad():
        x = noise.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(difference(x).float().square().sum(), x)
    return noise.float() - eta * (beta * gradient + noise.float()) + (2 * eta) ** 0.5 * xi


class DivIn(Mitigation):
    """Langevin steps on the initial noise, at the first timestep, before guidance as usual.

    Li et al., ICML 2026: x <- x - eta (beta grad ||v||^2 + x) + sqrt(2 eta) xi with v = x0_c - x0_u through
    the UNet, and xi from the sample's own seed. Published for Stable Diffusion 1 (beta 0.6, eta 0.05) and, as
    a flow, SD 3 (beta 0.1, eta 0.01; `langevin` and `image_difference` serve a flow pipeline, too). Costs two
    evaluations and two gradient passes a step.

    Args:
        beta: weight of ||v||^2 against the noise's own density.
        eta: size of a step.
        steps: how many.
    """

    def __init__(self, beta: NonNegativeFloat = 0.6, eta: PositiveFloat = 0.05, steps: PositiveInt = 1):
        self.beta, self.eta, self.steps = beta, eta, steps

    def initial_noise(self, batch: Batch) -> Tensor:
        first, rows = FirstStep(batch), torch.arange(len(batch.noise))
        prediction_type, moved = batch.scheduler.config.prediction_type, batch.noise
        embeddings = torch.cat([batch.unconditional_embedding, batch.conditional_embedding])
        generators = batch.own_generators("divin")

        def difference(x: Tensor) -> Tensor:
            u, c = first.output(torch.cat([x, x]), embeddings, rows).chunk(2)
            return image_difference(c - u, first.alpha, first.sigma, prediction_type)

        for _ in range(self.steps):
            xi = standard_normal(generators, moved.shape[1:])
            with frozen(batch.unet):
                moved = langevin(moved, difference, xi.to(moved.device), self.beta, self.eta)
            batch.gradient_passes += 2
        return moved.to(batch.noise.dtype)
