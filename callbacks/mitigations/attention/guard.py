"""GUARD: guidance towards a prediction with attenuated cross attention, and away from the plain one."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from callbacks.mitigations.attention.attenuation import attend_attenuated
from callbacks.mitigations.guidance.ordinary_guidance import OrdinaryGuidance, inner, per_sample, predict
from data.ranges import FiniteFloat
from infer.denoising.guidance import onto
from infer.denoising.hooks import Batch, DenoisingStep, Request
from infer.detect.attention import wrapped_processors

EARLY = ("down_blocks", "mid_block")
ALIKE = 0.9  # cosine above which the way to the positive loses its part along the prompt's
LARGEST = 2.0  # of that part


def without_alike(g: Tensor, m: Tensor) -> Tensor:
    """g - clip(<g, m> / <m, m>) m of the samples where cos(g, m) > 0.9, clipped to +-2; g of the others."""
    dot, size = inner(g, m), inner(m, m) + 1e-8
    cosine = dot / ((inner(g, g) + 1e-8) * size).sqrt()
    share = torch.where(cosine > ALIKE, (dot / size).clamp(-LARGEST, LARGEST), 0)
    return (g.float() - per_sample(share, g) * m.float()).to(g.dtype)


class GUARD(OrdinaryGuidance):
    """Attraction to the prompt with attenuated attention, repulsion from the prompt as the model reads it.

    Zhao et al., ICML 2026 (arXiv:2603.00133), with cross attention attenuation: eps = u + s g' - r_i (c - u).
    g = a - u, where a is the conditional prediction with `attenuation.attenuated` logits in the early blocks;
    g' is g without its part along c - u where the two are nearly parallel (`without_alike`); r_i =
    r cos(pi i / 2N) at step i of N. For any number of heads. Three evaluations a step.

    Args:
        repulsion: r.
        attenuation: factor of the logits of tokens that stand out, of the released code's spike_scale.
        threshold: by so many standard deviations a token's logit stands out; spike_threshold there.
        blocks: early: the UNet's way down and its middle; all.
        orthogonal: g' as above; False: g.
    """

    def __init__(
        self,
        repulsion: NonNegativeFloat = 2.0,
        attenuation: NonNegativeFloat = 0.3,
        threshold: FiniteFloat = 0.1,
        blocks: Literal["early", "all"] = "early",
        orthogonal: bool = True,
    ):
        self.repulsion, self.attenuation, self.threshold = repulsion, attenuation, threshold
        self.blocks, self.orthogonal = blocks, orthogonal
        self._active = False
        self.forget()

    def processors(self, unet: Any) -> dict[str, Any]:
        """Those of the cross attentions that are attenuated."""
        return wrapped_processors(unet, self.process, EARLY if self.blocks == "early" else ("",))

    def check_requests(self, pipe: Any, requests: Sequence[Request]) -> None:
        if not self.processors(pipe.unet):
            raise ValueError("GUARD needs cross attention in the UNet's early blocks: set blocks to all")

    def attention_processors(self, batch: Batch) -> dict[str, Any]:
        self._batch = batch
        return self.processors(batch.unet)

    def process(
        self, former: Any, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **options: Any
    ) -> Tensor:
        if not self._active:
            return former(attn, hidden_states, encoder_hidden_states, **options)
        given = attn, hidden_states, encoder_hidden_states
        return attend_attenuated(*given, self.threshold, self.attenuation)

    def step_embedding(self, step: DenoisingStep, embedding: Tensor) -> Tensor:
        self._embedding = embedding
        return embedding

    @contextmanager
    def attenuating(self) -> Iterator[None]:
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def combine(self, step: DenoisingStep, prediction: Tensor) -> Tensor:
        rows = self.own_rows(step)
        if not len(rows):
            return prediction
        index = onto(rows, prediction.device)
        u, away = step.unconditional[index], (step.conditional - step.unconditional)[index]
        with self.attenuating():
            towards = predict(self._batch.unet, step.latents[index], step, self._embedding[index]) - u
        self._batch.nfe[rows] += 1
        if self.orthogonal:
            towards = without_alike(towards, away)
        repulsion = self.repulsion * math.cos(math.pi / 2 * step.index / len(step.timesteps))
        guided = u + step.guidance_scale * towards - repulsion * away
        return prediction.index_copy(0, index, guided.to(prediction.dtype))

    def forget(self) -> None:
        self._batch = self._embedding = None
