"""The initial noise of a batch, and the UNet's predictions on it at any step of the schedule."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from data.batches import in_batches
from infer.denoising.hooks import DenoisingStep
from infer.denoising.requests import Request, with_negative_prompt
from infer.denoising.sampling import encode
from infer.denoising.schedulers import first_informative_step, noise_levels
from infer.detect.options import Detection


class Noise:
    """Noise x, (B, C, H, W), and `predict`.

    Attributes:
        levels: (alpha, sigma) of each step.
        first: index of the first step with alpha above 0.
    """

    def __init__(self, pipe: Any, x: Tensor, unconditional: Tensor, conditional: Tensor):
        self.unet, self.scheduler, self.x = pipe.unet, pipe.scheduler, x
        self.embedding = torch.cat([unconditional, conditional])
        self.levels = noise_levels(pipe.scheduler)
        self.first = first_informative_step(self.levels)

    def predict(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """eps_u and eps_c of latents x, taken for those of the step of this index; can be differentiated."""
        kind, (alpha, sigma) = self.scheduler.config.prediction_type, self.levels[index]
        t = self.scheduler.timesteps[index].to(x.device)
        step = DenoisingStep(index, float(t), (), torch.cat([x, x]), alpha, sigma, kind, 1.0)
        output = self.unet(step.latents, t, encoder_hidden_states=self.embedding, return_dict=False)[0]
        return step.epsilon(output).chunk(2)


def of_noise(
    options: Detection, pipe: Any, requests: Sequence[Request], scores: Callable[[Noise], dict[str, Tensor]],
    title: str,
) -> pd.DataFrame:  # fmt: skip
    """A row per request: the `scores` of its noise, (B,) each by name, batch by batch."""
    options.model.prepare(pipe, options.model.guidance_scale)
    requests = with_negative_prompt(requests, options.model.negative_prompt)
    resolution, parts = options.model.resolution_of(pipe), []
    with tqdm(desc=title, total=len(requests), unit="image") as bar:
        for batch in in_batches(requests, options.batch_size):
            x, _, *embeddings = encode(pipe, batch, resolution, pipe.device)
            found = scores(Noise(pipe, x, *embeddings))
            parts.append(pd.DataFrame({name: score.float().cpu().numpy() for name, score in found.items()}))
            bar.update(len(batch))
    return pd.concat(parts, ignore_index=True)
