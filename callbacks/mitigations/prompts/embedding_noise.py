"""Gaussian noise on the prompt's embedding (Somepalli et al.)."""

from jsonargparse.typing import PositiveFloat
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from infer.denoising.hooks import Batch
from infer.denoising.noise import standard_normal


class EmbeddingNoise(Mitigation):
    """Add noise_scale N(0, 1) to the embedding of the prompt, from the image's own seed.

    Somepalli et al., NeurIPS 2023 (arXiv:2305.20086), inference-time mitigation (GN): e <- e + lambda N(0,
    I), the same at all steps. Costs nothing.

    Args:
        noise_scale: lambda.
        unconditional: on the embedding of the empty or negative prompt, too, as the released code does.
    """

    def __init__(self, noise_scale: PositiveFloat = 0.1, unconditional: bool = False):
        self.noise_scale, self.unconditional = noise_scale, unconditional

    def unconditional_embedding(self, batch: Batch) -> Tensor:
        e = batch.unconditional_embedding
        return self.disturbed(batch, e, "EmbeddingNoise unconditional") if self.unconditional else e

    def conditional_embedding(self, batch: Batch) -> Tensor:
        return self.disturbed(batch, batch.conditional_embedding, "EmbeddingNoise conditional")

    def disturbed(self, batch: Batch, embedding: Tensor, purpose: str) -> Tensor:
        noise = standard_normal(batch.own_generators(purpose), embedding.shape[1:])
        return (embedding + self.noise_scale * noise.to(embedding.device)).to(embedding.dtype)
