"""The prompt's embedding optimized against memorization before the first step (Wen et al.)."""

from functools import partial

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.first_step import FirstStep, descend, length
from infer.denoising.hooks import Batch


class EmbeddingOptimization(Mitigation):
    """Lower RMS(eps_c - eps_u) at the first step by AdamW on the prompt's embedding, which then serves all.

    Wen et al., ICLR 2024 (arXiv:2407.21720), inference-time mitigation: e <- AdamW(e, grad L), L(e) =
    ||eps(x_T, e) - eps(x_T, empty)||_2, until L is at most a target. The first token's embedding stays as it
    is. Published targets are norms: divide by sqrt(numel), and a v-model's raw norms also by 1 / alpha_T (13
    to 15 on Stable Diffusion's schedule). Costs an evaluation without the prompt, and one an iteration, most
    with a gradient. Memory: a backward pass of the batch.

    Args:
        target: a sample stops at this RMS(eps_c - eps_u), in epsilon space as in traces.parquet.
        learning_rate: of AdamW.
        iterations: at most so many.
        whole_batch: the RMS over the batch decides for all of its samples, as in the released code: images
            then depend on which are in a batch.
    """

    def __init__(
        self,
        target: PositiveFloat = 0.0117,
        learning_rate: PositiveFloat = 0.05,
        iterations: PositiveInt = 10,
        whole_batch: bool = False,
    ):
        self.target, self.learning_rate = target, learning_rate
        self.iterations, self.whole_batch = iterations, whole_batch

    def conditional_embedding(self, batch: Batch) -> Tensor:
        first, embedding = FirstStep(batch), batch.conditional_embedding
        start, tokens = embedding[:, :1], embedding[:, 1:]
        unconditional = first.output(batch.noise, batch.unconditional_embedding, torch.arange(len(start)))

        def loss(tokens: Tensor, rows: Tensor) -> Tensor:
            own = rows.to(tokens.device)
            given = torch.cat([start[own].to(tokens.dtype), tokens], 1)
            conditional = first.output(batch.noise[own], given, rows)
            each = length(first.factor * (conditional - unconditional[own]))
            return each.square().mean().sqrt().expand(len(each)) if self.whole_batch else each

        adam = partial(torch.optim.AdamW, lr=self.learning_rate)
        tokens, _ = descend(batch, tokens, loss, adam, self.target, self.iterations, passes=1)
        return torch.cat([start, tokens.to(embedding.dtype)], 1)
