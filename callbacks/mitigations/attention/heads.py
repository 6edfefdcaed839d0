"""A cross attention of diffusers with its heads mixed in another way."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def mixed(
    attn: Any, hidden_states: Tensor, embedding: Tensor, mix: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Output of the attention, (rows, positions, channels), with all that surrounds its heads.

    Args:
        attn: a diffusers Attention, with any number of heads.
        hidden_states: (rows, positions, channels).
        embedding: (rows, tokens, width).
        mix: query (rows, heads, positions, n), key and value (rows, heads, tokens, n) -> like query.
    """
    residual = hidden_states
    if attn.group_norm is not None:
        hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
    if attn.norm_cross:
        embedding = attn.norm_encoder_hidden_states(embedding)
    query, key, value = (
        x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for x in (attn.to_q(hidden_states), attn.to_k(embedding), attn.to_v(embedding))
    )
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    out = mix(query, key, value).transpose(1, 2).flatten(2)
    for layer in attn.to_out:
        out = layer(out)
    return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor
