"""A denoising network whose prediction is exact: of Gaussian data without a prompt, of a mixture with one.

Without a prompt the data are N(0, I), so x_t is N(0, I) at every noise level (alpha^2 + sigma^2 = 1) and the
noise prediction is sigma x_t. A prompt's data are a memorized mode N(m, narrow^2 I) with weight w and the
rest N(n, spread^2 I) with weight 1 - w; both modes stay Gaussian under noise, with means alpha m and alpha n
and variances alpha^2 narrow^2 + sigma^2 and alpha^2 spread^2 + sigma^2. The prediction is -sigma times the
score of that mixture.

This has an attraction basin: with w near 1 the memorized mode owns every x_t at high noise, and the network
points at m. Latents that do not move towards m lose it when the noise is low enough to tell that they are not
a noisy m; from there on the network points at the rest.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """The data of one prompt. `log_odds` is log w / (1 - w); minus infinity: nothing is memorized."""

    rest: Tensor  # n, (C, H, W)
    memorized: Tensor | None = None  # m
    log_odds: float = -np.inf
    spread: float = 1.0
    narrow: float = 0.05


class GaussianWorld:
    """Called like a UNet. The first number of an embedding is that of its prompt, from 1; 0: none.

    Args:
        scheduler: its noise levels, and its prediction type: epsilon or v_prediction.
        prompts: the prompts.
    """

    def __init__(self, scheduler, prompts: list[Prompt]):
        kept = scheduler.alphas_cumprod.double().numpy()
        self.ratios = np.sqrt((1 - kept) / kept)  # sigma / alpha, which schedulers interpolate
        self.predicts_v = scheduler.config.prediction_type == "v_prediction"
        self.rest = torch.stack([p.rest for p in prompts]).double()
        self.memorized = torch.stack(
            [p.rest * 0 if p.memorized is None else p.memorized for p in prompts]
        ).double()
        self.log_odds, self.spread, self.narrow = (
            torch.tensor([getattr(p, name) for p in prompts], dtype=torch.float64)
            for name in ("log_odds", "spread", "narrow")
        )

    def __call__(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        ratio = np.interp(float(t), np.arange(len(self.ratios)), self.ratios)
        alpha, sigma = 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)
        given, number = x.double(), encoder_hidden_states[:, 0, 0].round().long()
        conditional = self.conditional(given, alpha, sigma, (number - 1).clamp(min=0))
        epsilon = torch.where((number > 0).view(-1, 1, 1, 1), conditional, sigma * given)
        output = (epsilon - sigma * given) / alpha if self.predicts_v else epsilon  # alpha eps - sigma x_0
        return (output.to(x.dtype),)

    def conditional(self, x: Tensor, alpha: float, sigma: float, prompt: Tensor) -> Tensor:
        """-sigma times the score of the noised mixture."""
        away_m, away_n = x - alpha * self.memorized[prompt], x - alpha * self.rest[prompt]
        variance_m = alpha**2 * self.narrow[prompt] ** 2 + sigma**2
        variance_n = alpha**2 * self.spread[prompt] ** 2 + sigma**2
        odds = self.log_odds[prompt] + x[0].numel() / 2 * (variance_n / variance_m).log()
        odds = odds - away_m.flatten(1).square().sum(1) / 2 / variance_m
        odds = odds + away_n.flatten(1).square().sum(1) / 2 / variance_n
        of_m, of_n = torch.sigmoid(odds) / variance_m, torch.sigmoid(-odds) / variance_n
        return sigma * (of_m.view(-1, 1, 1, 1) * away_m + of_n.view(-1, 1, 1, 1) * away_n)


def embeddings(prompts: list[int]) -> tuple[Tensor, Tensor]:
    """Unconditional and conditional, of prompts numbered from 0."""
    conditional = torch.tensor([n + 1.0 for n in prompts]).view(-1, 1, 1).expand(-1, 2, 3)
    return torch.zeros_like(conditional), conditional.contiguous()
