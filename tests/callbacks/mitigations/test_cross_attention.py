"""Ren et al.: the conditional prediction's attention is the masked, rescaled softmax; nothing else moves."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from callbacks.mitigations.attention.cross_attention import CrossAttentionMask, attend
from infer.denoising.hooks import DenoisingStep, GuidanceRule
from infer.denoising.loop import Denoised, denoise
from infer.denoising.requests import Request
from infer.denoising.sampling import denoise_requests
from infer.detect.attention import cross_attentions, ends_of_text
from tests.conftest import CAPTIONS
from tests.infer.denoising.loops import inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def by_hand(attn: Any, hidden: Tensor, embedding: Tensor, c: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Output and probabilities of one row: (positions, channels), (heads, positions, tokens)."""
    query, key, value = (x.double() for x in (attn.to_q(hidden), attn.to_k(embedding), attn.to_v(embedding)))
    width, outputs, shares = query.shape[-1] // attn.heads, [], []
    for head in range(attn.heads):
        part = slice(head * width, (head + 1) * width)
        logits = query[:, part] @ key[:, part].T / math.sqrt(width)
        logits[:, 0] *= c
        powers = torch.where(masked, 0, (logits - logits.max()).exp())
        share = powers / powers.sum(-1, keepdim=True)
        shares.append(share)
        outputs.append(share @ value[:, part])
    return attn.to_out[0](torch.cat(outputs, -1).to(hidden.dtype)), torch.stack(shares)


@torch.no_grad()
@pytest.mark.parametrize("c", [1.0, 1.25, 3.0])
def test_attention_is_the_softmax_written_out(sharp: Any, c: float) -> None:
    """Rows sum to one, and hidden tokens have none of it; some rows are left as they are."""
    attn = next(iter(cross_attentions(sharp.unet).values()))
    random = torch.Generator().manual_seed(0)
    hidden, embedding = (torch.randn(3, n, 32, generator=random) for n in (5, 8))
    factor, masked = torch.ones(3, 8), torch.zeros(3, 8, dtype=torch.bool)
    factor[1:, 0], masked[1, 4:], masked[2, 7:] = c, True, True
    out = attend(attn, hidden, embedding, factor, torch.zeros(3, 8).masked_fill(masked, -torch.inf))
    for row in range(3):
        expected, shares = by_hand(attn, hidden[row], embedding[row], factor[row, 0], masked[row])
        assert torch.allclose(out[row], expected, atol=1e-5)
        assert (
            torch.allclose(shares.sum(-1), torch.ones(1).double()) and (shares[..., masked[row]] == 0).all()
        )


def run(pipe: Any, prompts: Sequence[str], *rules: GuidanceRule, first: int = 0) -> Denoised:
    requests = [Request(f"s{n}", 0, prompt, 7 + first + n) for n, prompt in enumerate(prompts)]
    return denoise_requests(pipe, CPU, requests, 16, 3.0, 4, rules=rules)


class Untouched(CrossAttentionMask):
    """With c = 1, and a mask that hides nothing."""

    def __init__(self) -> None:
        super().__init__(first_token_scale=1.0, mask="after_end")

    def hidden(self, ends: Tensor, tokens: int) -> Tensor:
        return torch.zeros(len(ends), tokens, dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 4, (2, 8)])
def test_without_scale_and_mask_it_is_plain_attention(
    heads: int | tuple[int, int], dtype: torch.dtype
) -> None:
    """For any number of heads; in half precision, too."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16, 32), cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=heads, norm_num_groups=8,
    ).to(dtype)  # fmt: skip
    rule, given = Untouched(), [x.to(dtype) for x in inputs(3)]
    rule._ends = torch.tensor([3, 4, 5])
    plain, same = (denoise(unet, scheduler_of(), *given, 3.0, 3, rules) for rules in ([], [rule]))
    assert torch.allclose(plain.latents, same.latents, atol=1e-5 if dtype == torch.float32 else 0.05)
    assert unet.attn_processors.keys() and not any("partial" in str(p) for p in unet.attn_processors.values())


@pytest.mark.parametrize("mask, kept", [("after_end", 1), ("from_end", 0), ("none", None)])
def test_tokens_after_the_prompt_are_hidden_from_the_conditional_prediction_only(
    sharp: Any, mask: str, kept: int | None
) -> None:
    """Of each prompt by its own length; `kept`: one more than the words' tokens with the end of text."""

    class Disturbed(GuidanceRule):
        """Noise on the tokens that should be hidden, of the conditional embedding."""

        def conditional_embedding(self, batch) -> Tensor:
            ends, embedding = ends_of_text(sharp, CAPTIONS[5:8]), batch.conditional_embedding.clone()
            for row, end in enumerate(ends):
                first = end + (1 if kept is None else kept)
                embedding[row, first:] += torch.randn(embedding[row, first:].shape)
            return embedding

    torch.manual_seed(0)
    rule, plain = CrossAttentionMask(1.25, mask), run(sharp, CAPTIONS[5:8])
    masked, disturbed = run(sharp, CAPTIONS[5:8], rule), run(sharp, CAPTIONS[5:8], rule, Disturbed())
    unhidden = (masked.conditional_rms[:, 0] - disturbed.conditional_rms[:, 0]).abs()
    assert (unhidden.max() > 1e-4) == (kept is None) and (kept is None or unhidden.max() < 1e-6)
    assert torch.allclose(masked.unconditional_rms[:, 0], plain.unconditional_rms[:, 0], atol=1e-6)
    assert (masked.conditional_rms[:, 0] - plain.conditional_rms[:, 0]).abs().min() > 1e-5
    assert masked.nfe.tolist() == plain.nfe.tolist()


class Sometimes(GuidanceRule):
    """No guidance for the first sample, and for all at the second step: ragged calls of the UNet."""

    def __init__(self, first: int = 0):
        self.first = first

    def guidance_scale(self, step: DenoisingStep, scale: Tensor) -> Tensor:
        off = (torch.arange(self.first, self.first + len(scale)) == 0) | (step.index == 1)
        return torch.where(off, 0.0, scale)


def test_a_ragged_batch_of_three_is_three_batches_of_one(sharp: Any) -> None:
    prompts = ["sun", "grinning cat flying saucer", "old map"]
    whole = run(sharp, prompts, CrossAttentionMask(), Sometimes())
    for row, prompt in enumerate(prompts):
        alone = run(sharp, [prompt], CrossAttentionMask(), Sometimes(row), first=row)
        assert torch.allclose(alone.latents[0], whole.latents[row], atol=1e-5)


def test_calls_of_other_rules_are_left_alone(sharp: Any) -> None:
    """A rule that runs the UNet between steps gets plain attention."""

    class Other(GuidanceRule):
        def before_denoising(self, batch) -> None:
            self.batch, self.outputs = batch, []

        def combine(self, step: DenoisingStep, prediction: Tensor) -> Tensor:
            self.outputs.append(self.batch.unet(
                torch.ones(1, 4, 8, 8), 500, torch.ones(1, 8, 32), return_dict=False
            )[0])  # fmt: skip
            return prediction

    plain, masked = Other(), Other()
    run(sharp, ["sun"], plain)
    run(sharp, ["sun"], masked, CrossAttentionMask())
    assert all(torch.equal(a, b) for a, b in zip(plain.outputs, masked.outputs, strict=True))


def test_a_rule_without_effect_is_named(caplog: pytest.LogCaptureFixture) -> None:
    CrossAttentionMask(1.0, "none")
    assert "first_token_scale is 1 and mask is none" in caplog.text
