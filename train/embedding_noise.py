"""Noise on text embeddings, so that a model does not memorize them: Somepalli et al. 2023 (GN, mixup)."""

from torch import Tensor

from train.objective import SharedDraws


def with_gaussian(embedding: Tensor, strength: float, draws: SharedDraws) -> Tensor:
    """embedding + strength * N(0, I), (B, tokens, width): GN in the source."""
    return embedding + strength * draws.normal(*embedding.shape[1:]).to(embedding)


def with_mixup(embedding: Tensor, parameter: float, draws: SharedDraws) -> Tensor:
    """k e_i + (1 - k) e_j with k from Beta(parameter, 1) and j another row, (B, tokens, width).

    k = u^(1 / parameter), u uniform in [0, 1): Beta's distribution function is k^parameter. One k a batch,
    and j a random permutation of its rows, as in the source's released code; a large parameter mixes little.
    A process mixes its own rows: so here W processes do not draw what one does with W times the batch.

    ValueError for a batch of one.
    """
    if len(embedding) < 2:
        raise ValueError("model.embedding_mixup has nothing to mix in a batch of one: raise data.batch_size")
    k = draws.uniform()[0] ** (1 / parameter)
    order = draws.uniform().argsort()
    return k.to(embedding) * embedding + (1 - k).to(embedding) * embedding[order]
