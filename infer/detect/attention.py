"""Cross attention recorded while a batch is denoised, and the detectors that read it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infer.denoising.hooks import Batch, DenoisingStep, GuidanceRule, both

LAYER = 4  # of attention E: `layer_id = 3`, counted from 0, in the authors' code


def cross_attentions(unet: Any) -> dict[str, Any]:
    """The UNet's cross attentions of diffusers' Attention class, by name; empty where there is none."""
    from diffusers.models.attention_processor import Attention

    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    }


def wrapped_processors(
    unet: Any, process: Callable[..., Tensor], blocks: tuple[str, ...] = ("",)
) -> dict[str, Callable[..., Tensor]]:
    """`process`, with the former processor as its first argument, for each cross attention of the blocks.

    Args:
        unet: whose processors are taken as the former ones.
        process: (former, attn, hidden_states, encoder_hidden_states, **options) -> output of the attention.
        blocks: beginnings of the attentions' names.
    """
    former = unet.attn_processors
    names = [f"{name}.processor" for name in cross_attentions(unet) if name.startswith(blocks)]
    return {name: partial(process, former[name]) for name in names}


class CrossAttention(GuidanceRule):
    """Changes nothing: records the share of attention that each token of the prompt gets.

    The shares are of the conditional prediction, averaged over heads and positions, at the first step and in
    the last fifth of the steps. `first` and each of `last` are means of all layers, (B, tokens);
    `of_layer` is one layer at the first step.

    Args:
        steps: number of steps.
        layer: counted from 1 in the order in which the UNet calls the layers; at most the last.
    """

    def __init__(self, steps: int, layer: int = LAYER):
        self.late, self.layer = steps - max(1, steps // 5), layer

    def begin(self, batch_size: int, device: torch.device) -> None:
        self.index, self.layers, self.last = 0, [], []

    def needs(self, step: DenoisingStep, scale: Tensor) -> tuple[Tensor, Tensor]:
        return both(scale)

    def attention_processors(self, batch: Batch) -> dict[str, Any]:
        """Processors that record, and return the former processors' exact output."""
        return wrapped_processors(batch.unet, partial(self.process, batch))

    def process(
        self, batch: Batch, former: Any, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        if not 0 < self.index < self.late:
            conditional = slice(batch.unconditional_rows, None)
            self.record(attn, hidden_states[conditional], encoder_hidden_states[conditional])
        return former(attn, hidden_states, encoder_hidden_states, **options)

    def record(self, attention: Any, hidden_states: Tensor, embeddings: Tensor) -> None:
        """Compute the attention probabilities of one layer, averaged over heads and positions."""
        if attention.norm_cross:
            embeddings = attention.norm_encoder_hidden_states(embeddings)
        query = attention.head_to_batch_dim(attention.to_q(hidden_states))
        key = attention.head_to_batch_dim(attention.to_k(embeddings))
        query = query if attention.norm_q is None else attention.norm_q(query)
        key = key if attention.norm_k is None else attention.norm_k(key)
        shares = attention.get_attention_scores(query.float(), key.float())
        self.layers.append(shares.unflatten(0, (-1, attention.heads)).mean((1, 2)))

    def observe(self, step: DenoisingStep) -> None:
        if self.layers:
            mean = torch.stack(self.layers).mean(0)
            if self.index == 0:
                self.first, self.of_layer = mean, self.layers[min(self.layer, len(self.layers)) - 1]
            if self.index >= self.late:
                self.last.append(mean)
        self.index, self.layers = self.index + 1, []

    def scores(self, ends: Sequence[int]) -> dict[str, np.ndarray]:
        """Both detectors of the batch, (B,) each; `ends`: index of each prompt's end-of-text token."""
        first, of_layer = self.first.cpu().numpy(), self.of_layer.cpu().numpy()
        last = torch.stack(self.last, 1).cpu().numpy()
        return {"attention_d": attention_d(first, last, ends), "attention_e": attention_e(of_layer)}


def ends_of_text(pipe: Any, texts: Sequence[str]) -> list[int]:
    """Index of each prompt's end-of-text token, where its summary tokens begin."""
    ids = pipe.tokenizer(list(texts), padding=False, truncation=True).input_ids
    return [len(tokens) - 1 for tokens in ids]


def entropy(shares: np.ndarray) -> np.ndarray:
    """-sum a log a over the last axis, in nats; 0 log 0 is 0."""
    shares = np.asarray(shares, float)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)


def attention_d(first: np.ndarray, last: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Detector D of Ren et al. (ECCV 2024, arXiv:2403.11052), (N,); needs the whole run with guidance.

    D = 1/T_D sum_t E_t + 1/T_D sum_t |S_t - S_T|, over the last T_D = T/5 steps t, T being the first step.
    E_t is the entropy of the attention that the tokens get, averaged over heads, positions and layers; S_t is
    the same sum over the summary tokens only, from the end-of-text token to the end of the padding. The
    formula is the paper's; the authors' code omits the absolute value.

    Args:
        first: shares of attention at the first step, (N, tokens).
        last: at the last T_D steps, (N, T_D, tokens).
        ends: index of the end-of-text token, (N,).
    """
    first, last = np.asarray(first, float), np.asarray(last, float)
    summary = np.arange(first.shape[-1]) >= np.asarray(ends)[:, None]
    change = entropy(last * summary[:, None]) - entropy(first * summary)[:, None]
    return entropy(last).mean(1) + np.abs(change).mean(1)


def attention_e(of_layer: np.ndarray) -> np.ndarray:
    """Detector E of Ren et al. (ECCV 2024, arXiv:2403.11052), (N,); needs the first step only.

    E = entropy of the attention that the tokens get in one layer, averaged over heads and positions: in the
    authors' code the fourth cross attention that the UNet calls, chosen on Stable Diffusion 1.4. In the paper
    memorized prompts have the higher entropy.

    Args:
        of_layer: shares of attention at the first step, (N, tokens).
    """
    return entropy(of_layer)
