"""Detectors that need the initial noise only: formulas, from functions that predict noise.

`predict` gives the noise predictions eps_u and eps_c, (B, C, H, W) each, of noisy latents at one timestep.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from infer.denoising.hooks import layout, rms

Predict = Callable[[Tensor], tuple[Tensor, Tensor]]


def alignment(unconditional: Tensor, conditional: Tensor) -> Tensor:
    """cos(eps_c - eps_u, eps_u) over the channels, averaged over the locations, (B,).

    Part of the anisotropy below; at a timestep near 0, but on pure noise.
    """
    cosine = torch.cosine_similarity(conditional - unconditional, unconditional, dim=1)
    return cosine.flatten(1).mean(1)


def anisotropy(aligned: Tensor, unconditional: Tensor, conditional: Tensor) -> Tensor:
    """M = cos at low noise + ||eps_c - eps_u|| at the first timestep, (B,), both on the same noise x_T.

    Asthana et al. (ICLR 2026, arXiv:2601.20642), with weights of 1: theirs are 1, or fitted to 20 labelled
    prompts. The norm is of the whole tensor, as there. `aligned` is the `alignment`; the predictions are
    those at the first timestep.
    """
    return aligned + (conditional - unconditional).flatten(1).norm(dim=1)


def agreement(differences: Sequence[Tensor]) -> Tensor:
    """Mean cosine between the differences eps_c - eps_u at the first timestep on K noises, (B,).

    This project, after the one-step extraction of Webster (2023, arXiv:2305.08694): x_0 by eps_c less that by
    eps_u is -sigma / alpha of the difference. A memorized prompt means one image, whatever the noise. Each
    channel is less its mean, so that a colour that all images of a prompt share counts little.
    """
    count = len(differences)
    return (sum(map(layout, differences)).square().sum(1) - count) / (count * (count - 1))


def mirrored(x: Tensor) -> list[Tensor]:
    """Eight noises of one, (B, C, H, W) each: as it is and mirrored, and the negative of these."""
    four = [x, x.flip(2), x.flip(3), x.flip(2, 3)]
    return [*four, *(-each for each in four)]


def sharpness(predict: Predict, x: Tensor, sigma: float) -> Tensor:
    """Mean square of J s, (B,): the change of s = s_c - s_u along itself, J being its Jacobian at x_T.

    Jeon et al. (ICML 2025, arXiv:2412.04140), ||H s||^2: where the score s = -(eps_c - eps_u) / sigma is
    that of a density J is the Hessian H of its logarithm. Computed forwards (a Jacobian-vector product), so
    that no activations are kept.
    """

    def score(latents: Tensor) -> Tensor:
        unconditional, conditional = predict(latents)
        return -(conditional - unconditional) / sigma

    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the only kernel with a forward derivative
        _, product = torch.func.jvp(score, (x,), (score(x),))
    return rms(product).square()


def decoupled_hessian(predict: Predict, x: Tensor) -> Tensor:
    """Mean square of grad |eps_c|^2 / 2 - grad |eps_u|^2 / 2 at x_T, (B,): J_c^T eps_c - J_u^T eps_u.

    "Metric 2" of the ICML 2026 submission that has the DSM: both branches' curvature apart. The squared L2
    norm over the number of entries. The UNet's activations are kept for one pass backwards.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        unconditional, conditional = predict(x)
        energy = (conditional.float().square().sum() - unconditional.float().square().sum()) / 2
        (gradient,) = torch.autograd.grad(energy, x)
    return rms(gradient).square()
