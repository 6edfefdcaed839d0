"""The width of an image's attraction basin: the noise level up to which the denoiser keeps the image."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # see `infer.denoising.denoiser.Denoiser`


class Criterion(NamedTuple):
    """When latents x count as kept at a noise level, over the first `iterations` iterates y_k.

    Globally: ||y_k - x|| <= tolerance ||x||; at a location u: |y_k(u) - x(u)| <= local_tolerance |x(u)|, both
    norms over the channels. The defaults are the published ones for Stable Diffusion 1.4.
    """

    iterations: int = 16
    tolerance: float = 0.25
    local_tolerance: float = 0.1


class CriticalScale(NamedTuple):
    """sigma_c of each image, (B,), and at each location, (B, H, W); and the UNet rows spent on it, (B,).

    Where an image escapes at the lowest level already sigma_c is that level, an upper bound; where it is kept
    at the highest one it is that one, a lower bound. NaN where the denoiser's output was not finite.
    """

    whole: Tensor
    local: Tensor
    evaluations: Tensor


class Kept(NamedTuple):
    """Which whole images, (B,) bool, and locations, (B, H, W) bool, are kept; finite iterates, (B,) bool."""

    whole: Tensor
    local: Tensor
    finite: Tensor
    iterations: int


def kept(denoise: Denoise, x: Tensor, sigma: Tensor, embedding: Tensor, criterion: Criterion) -> Kept:
    """Iterate y_0 = x, y_k = D_sigma(y_{k-1}) at fixed levels sigma, (B,), and compare with x.

    No noise is added. The iteration ends early where nothing is kept.
    """
    size, size_at = x.flatten(1).norm(dim=1), x.norm(dim=1)
    whole = torch.ones(len(x), dtype=torch.bool, device=x.device)
    local = torch.ones_like(size_at, dtype=torch.bool)
    y, calls = x, 0
    for _ in range(criterion.iterations):
        y, calls = denoise(y, sigma, embedding), calls + 1
        moved = y - x
        whole &= moved.flatten(1).norm(dim=1) <= criterion.tolerance * size
        local &= moved.norm(dim=1) <= criterion.local_tolerance * size_at
        if not (whole.any() or local.any()):
            break
    return Kept(whole, local, y.flatten(1).isfinite().all(1), calls)


def critical_scale(
    denoise: Denoise, x: Tensor, embedding: Tensor, levels: Sequence[float], criterion: Criterion,
    halvings: int = 4,
) -> CriticalScale:  # fmt: skip
    """sigma_c, the largest noise level at which the denoiser, iterated on itself, keeps the latents x.

    Levels are tried upwards. sigma_c is the geometric mean of the first level at which x escapes and the one
    below; for whole images this interval is halved further, in log sigma. From the critical scale of "From
    Modes to Memories" (Lopez Amado, arXiv:2609.39648), whose local form takes 24 levels.

    Args:
        denoise: D_sigma(y), from (y, sigma, embedding).
        x: latents of images in the UNet's scale, (B, C, H, W), float32.
        embedding: of each image's caption, or of the empty one, (B, tokens, width).
        levels: rising sigmas, those of x + sigma noise; at least two.
        criterion: when x counts as kept.
        halvings: of the interval for whole images.
    """
    count, broken = (torch.zeros(len(x), dtype=kind, device=x.device) for kind in (torch.long, torch.bool))
    first = torch.full((len(x),), len(levels), device=x.device)  # index of the first level with an escape
    first_at = first.view(-1, 1, 1).expand(-1, *x.shape[2:]).clone()
    for index, level in enumerate(levels):
        rows = ((first == len(levels)) | (first_at == len(levels)).flatten(1).any(1)).nonzero()[:, 0]
        if not len(rows):
            break
        sigma = torch.full((len(rows),), level, device=x.device)
        whole, local, finite, calls = kept(denoise, x[rows], sigma, embedding[rows], criterion)
        count[rows] += calls
        broken[rows] |= ~finite
        first[rows] = torch.where(whole, first[rows], first[rows].clamp(max=index))
        first_at[rows] = torch.where(local, first_at[rows], first_at[rows].clamp(max=index))
    low, high = interval(first, levels)
    for _ in range(halvings):
        rows = (low < high).nonzero()[:, 0]
        if not len(rows):
            break
        middle = (low * high).sqrt()[rows]
        whole, _, finite, calls = kept(denoise, x[rows], middle, embedding[rows], criterion)
        count[rows] += calls
        broken[rows] |= ~finite
        low[rows], high[rows] = torch.where(whole, middle, low[rows]), torch.where(whole, high[rows], middle)
    low_at, high_at = interval(first_at, levels)
    whole, local = (low * high).sqrt(), (low_at * high_at).sqrt()
    nan = float("nan")
    return CriticalScale(whole.masked_fill(broken, nan), local.masked_fill(broken.view(-1, 1, 1), nan), count)


def interval(first: Tensor, levels: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The levels below the first escape and at it; the same twice at the ends of the scale."""
    sigma = torch.tensor(levels, device=first.device)
    return sigma[(first - 1).clamp(min=0)], sigma[first.clamp(max=len(levels) - 1)]
