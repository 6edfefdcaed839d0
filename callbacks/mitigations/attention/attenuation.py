"""Cross attention with fewer spikes: tokens whose attention logits stand out are weakened, per head."""

from typing import Any

import torch
from torch import Tensor

from callbacks.mitigations.attention.heads import mixed


def spikes(logits: Tensor, threshold: float) -> Tensor:
    """Tokens that stand out, (B, heads, tokens) bool, from attention logits (B, heads, positions, tokens).

    m_j = max over positions of the logit of token j; z_j = (m_j - mean m) / std m, mean and deviation over
    all tokens but the first; a spike has z_j above the threshold. The first token never is one.
    """
    highest = logits.amax(2)
    others = highest[..., 1:]
    z = (highest - others.mean(-1, keepdim=True)) / (others.std(-1, keepdim=True) + 1e-6)
    return (z > threshold) & (torch.arange(z.shape[-1], device=z.device) > 0)


def attenuated(logits: Tensor, threshold: float, scale: float) -> Tensor:
    """The logits with those of the spikes times `scale`."""
    return torch.where(spikes(logits, threshold)[:, :, None], scale * logits, logits)


def attend_attenuated(
    attn: Any, hidden_states: Tensor, embedding: Tensor, threshold: float, scale: float
) -> Tensor:
    """Cross attention softmax(attenuated(q k / sqrt(width))) v, of a diffusers Attention.

    Args:
        attn: the attention, with any number of heads.
        hidden_states: (rows, positions, channels).
        embedding: (rows, tokens, width).
        threshold: of a spike.
        scale: of the spikes' logits.
    """

    def mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        logits = attn.scale * query.float() @ key.float().transpose(-1, -2)
        return attenuated(logits, threshold, scale).softmax(-1).to(value.dtype) @ value

    return mixed(attn, hidden_states, embedding, mix)
