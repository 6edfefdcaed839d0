"""Padding embeddings set to 0: what a text encoder writes behind the prompt triggers memorized images."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jsonargparse.typing import ClosedUnitInterval
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from data.cli import warn_no_effect
from infer.denoising.hooks import Batch, Request

REPLACEMENT = "!"  # what Stable Diffusion 2 pads with


def tokenized(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Padded token ids as the pipeline makes them, (B, tokens)."""
    options = {"padding": "max_length", "max_length": pipe.tokenizer.model_max_length, "truncation": True}
    return pipe.tokenizer(list(prompts), **options, return_tensors="pt").input_ids


def end_of_text(pipe: Any, ids: Tensor) -> Tensor:
    """Position of each prompt's first end-of-text token, (B,)."""
    return (ids == pipe.tokenizer.eos_token_id).int().argmax(1)


def masked_pads(end: Tensor, length: int, share: float) -> Tensor:
    """Positions that become 0, (B, length) bool: round(share d) of the d after `end`, the nearest first."""
    count = (share * (length - 1 - end)).round()
    position = torch.arange(length)[None]
    return (position > end[:, None]) & (position <= (end + count)[:, None])


class Pads(Mitigation):
    """The conditional embedding without most of its padding.

    Kim & No, CVPR 2026 (arXiv:2605.02908). An embedding is [start, prompt, end, pad_1 ... pad_d]; Stable
    Diffusion 1 pads with the end-of-text token, which repeats the prompt's summary d times. Two forms: `mask`
    sets a share of the pads to 0, those next to the end first; `replace` pads with "!" before encoding, and
    sets the end's embedding to 0. A prompt that fills the text encoder has no pads. Costs no evaluations.

    Args:
        form: mask or replace; replace is for models that do not pad with "!" already, as SD 2 does.
        share: of the pads that mask sets to 0; at 1 images break.
    """

    def __init__(self, form: Literal["mask", "replace"] = "mask", share: ClosedUnitInterval = 0.7):
        self.form, self.share = form, share
        self.forget()

    def forget(self) -> None:
        self._zero = self._replaced = None

    def check_requests(self, pipe: Any, requests: Sequence[Request]) -> None:
        tokenizer, prompts = pipe.tokenizer, list(dict.fromkeys(request.prompt for request in requests))
        if self.form == "replace":
            number = tokenizer.convert_tokens_to_ids(REPLACEMENT)
            if number is None or number == tokenizer.unk_token_id != tokenizer.pad_token_id:
                raise ValueError(f"the tokenizer has no token {REPLACEMENT!r}: use form mask")
            if number == tokenizer.pad_token_id:
                raise ValueError(f"this model pads with {REPLACEMENT!r} already: use form mask")
        ids = tokenized(pipe, prompts)
        full = int((end_of_text(pipe, ids) == ids.shape[1] - 1).sum())
        if full:
            warn_no_effect(
                "Pads", f"{full} of {len(prompts)} prompts fill the text encoder: they have no pads"
            )

    @torch.no_grad()
    def prepare(self, pipe: Any, requests: Sequence[Request], device: torch.device) -> None:
        ids = tokenized(pipe, [request.prompt for request in requests])
        end, position = end_of_text(pipe, ids), torch.arange(ids.shape[1])[None]
        if self.form == "mask":
            self._zero = masked_pads(end, ids.shape[1], self.share).to(device)
            return
        self._zero = (position == end[:, None]).to(device)
        number = pipe.tokenizer.convert_tokens_to_ids(REPLACEMENT)
        replaced = torch.where(position > end[:, None], number, ids)
        self._replaced = pipe.text_encoder(replaced.to(device))[0]

    def conditional_embedding(self, batch: Batch) -> Tensor:
        embedding = batch.conditional_embedding
        if self._replaced is not None:
            embedding = self._replaced.to(embedding.dtype)
        return embedding.masked_fill(self._zero[..., None], 0)
