"""Cross attention without the tokens that follow the prompt, and with a heavier first token (Ren et al.)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from callbacks.mitigations.attention.heads import mixed
from callbacks.mitigations.base import Mitigation
from data.cli import warn_no_effect
from infer.denoising.guidance import onto
from infer.denoising.hooks import Batch, Request
from infer.detect.attention import cross_attentions, ends_of_text, wrapped_processors

Mask = Literal["none", "after_end", "from_end"]


def attend(attn: Any, hidden_states: Tensor, embedding: Tensor, factor: Tensor, bias: Tensor) -> Tensor:
    """Cross attention softmax(factor q k / sqrt(width) + bias) v, of a diffusers Attention.

    Args:
        attn: the attention, with any number of heads.
        hidden_states: (rows, positions, channels).
        embedding: (rows, tokens, width).
        factor: of each token's logit, (rows, tokens).
        bias: added to it, (rows, tokens); -inf: no attention.
    """

    def mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key = key * factor.to(key.dtype)[:, None, :, None]  # a logit is linear in its key
        return F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype)[:, None, None])

    return mixed(attn, hidden_states, embedding, mix)


class CrossAttentionMask(Mitigation):
    """Hide the tokens after the prompt from the conditional prediction, and scale its first token's logit.

    Ren et al., ECCV 2024 (arXiv:2403.11052), inference-time mitigation: in each cross attention of the
    conditional prediction, logits q k / sqrt(width) become c times the first token's, and -inf for the
    tokens after the prompt's end; softmax as usual. Costs nothing.

    Args:
        first_token_scale: c, of the first token's logit, before the softmax.
        mask: after_end, the tokens after the end-of-text token; from_end, that one as well; none.
    """

    def __init__(self, first_token_scale: PositiveFloat = 1.25, mask: Mask = "after_end"):
        if first_token_scale == 1 and mask == "none":
            warn_no_effect("CrossAttentionMask", "first_token_scale is 1 and mask is none")
        self.first_token_scale, self.mask = first_token_scale, mask

    def check_requests(self, pipe: Any, requests: Sequence[Request]) -> None:
        if not cross_attentions(pipe.unet):
            raise ValueError("CrossAttentionMask needs a UNet with cross attention, and this one has none")

    def prepare(self, pipe: Any, requests: Sequence[Request], device: torch.device) -> None:
        self._ends = onto(torch.tensor(ends_of_text(pipe, [r.prompt for r in requests])), device)

    def attention_processors(self, batch: Batch) -> dict[str, Any]:
        return wrapped_processors(batch.unet, partial(self.process, batch))

    def process(
        self, batch: Batch, former: Any, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        samples = batch.conditional_samples
        if samples is None or len(samples) == 0:
            return former(attn, hidden_states, encoder_hidden_states, **options)
        rows, tokens = encoder_hidden_states.shape[:2]
        factor = encoder_hidden_states.new_ones(rows, tokens)
        factor[batch.unconditional_rows :, 0] = self.first_token_scale
        hidden = encoder_hidden_states.new_zeros(rows, tokens, dtype=torch.bool)
        hidden[batch.unconditional_rows :] = self.hidden(self._ends[samples], tokens)
        bias = torch.zeros_like(factor).masked_fill(hidden, -torch.inf)
        return attend(attn, hidden_states, encoder_hidden_states, factor, bias)

    def hidden(self, ends: Tensor, tokens: int) -> Tensor:
        """Tokens without attention, (len(ends), tokens) bool; `ends`: index of the end-of-text token."""
        first = {"none": ends + tokens, "after_end": ends + 1, "from_end": ends}[self.mask]
        return torch.arange(tokens, device=ends.device) >= first[:, None]
