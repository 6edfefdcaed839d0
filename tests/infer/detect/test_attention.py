"""Cross attention: what is recorded is what q and k give, and the UNet's output does not change."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from infer.denoising.loop import denoise
from infer.denoising.requests import Request
from infer.denoising.sampling import encode
from infer.detect.attention import (
    CrossAttention,
    attention_d,
    attention_e,
    cross_attentions,
    ends_of_text,
    entropy,
)
from tests.conftest import CAPTIONS
from tests.infer.denoising.loops import inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, STEPS = torch.device("cpu"), 10  # the last fifth: two


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def shares_by_hand(attention: Any, hidden: torch.Tensor, embeddings: torch.Tensor) -> np.ndarray:
    """What each token gets of the attention, over heads and positions: (rows, tokens)."""
    query = hidden.numpy().astype(float) @ attention.to_q.weight.detach().numpy().T
    key = embeddings.numpy().astype(float) @ attention.to_k.weight.detach().numpy().T
    width = query.shape[-1] // attention.heads
    shares = []
    for q, k in zip(query, key, strict=True):
        heads = [slice(head * width, (head + 1) * width) for head in range(attention.heads)]
        maps = [softmax(q[:, part] @ k[:, part].T / math.sqrt(width)) for part in heads]
        shares.append(np.mean(maps, axis=(0, 1)))
    return np.array(shares)


def recorded(pipe: Any, count: int, scale: float = 3.0, layer: int = 4) -> tuple[CrossAttention, list]:
    """A denoised batch's rule, and by hand the conditional shares of each layer call, in order."""
    requests = [Request(f"s{n}", 0, CAPTIONS[n], 100 + n) for n in range(count)]
    noise, generators, *embeddings = encode(pipe, requests, 16, CPU)
    rule, calls = CrossAttention(STEPS, layer), []

    def record(module: Any, inputs: tuple, options: dict) -> None:
        hidden, tokens = inputs[0][-count:], options["encoder_hidden_states"][-count:]
        calls.append(shares_by_hand(module, hidden, tokens))

    hooks = [
        attention.register_forward_pre_hook(record, with_kwargs=True)
        for attention in cross_attentions(pipe.unet).values()
    ]
    denoise(pipe.unet, pipe.scheduler, noise, *embeddings, scale, STEPS, [rule], generators)
    for hook in hooks:
        hook.remove()
    return rule, calls


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_the_shares_are_those_of_q_and_k(sharp: Any, scale: float) -> None:
    """Of the conditional half, whatever the scale; at the first step and the last two."""
    layers = len(cross_attentions(sharp.unet))
    rule, calls = recorded(sharp, 3, scale)
    by_step = np.array(calls).reshape(STEPS, layers, 3, -1)
    assert layers == 4 and by_step.sum(-1) == pytest.approx(1)
    assert np.allclose(rule.first, by_step[0].mean(0), atol=1e-6)
    assert np.allclose(rule.of_layer, by_step[0, 3], atol=1e-6)
    assert len(rule.last) == 2 and np.allclose(torch.stack(rule.last), by_step[-2:].mean(1), atol=1e-6)
    assert by_step[0].std(-1).min() > 1e-3  # the tokens differ


def test_the_scores_are_those_of_the_shares(sharp: Any) -> None:
    """Each prompt's own end of text counts: of one word, and of two."""
    rule, calls = recorded(sharp, 8)
    by_step = np.array(calls).reshape(STEPS, 4, 8, -1)
    ends = ends_of_text(sharp, CAPTIONS)
    scores = rule.scores(ends)
    for row, end in enumerate(ends):
        steps = [by_step[t, :, row].mean(0) for t in range(STEPS)]
        whole = [sum(-a * math.log(a) for a in step) for step in steps]
        summary = [sum(-a * math.log(a) for a in step[end:]) for step in steps]
        changes = [abs(summary[t] - summary[0]) for t in (8, 9)]
        assert scores["attention_d"][row] == pytest.approx(sum(whole[8:]) / 2 + sum(changes) / 2, rel=1e-5)
        layer = by_step[0, 3, row]
        assert scores["attention_e"][row] == pytest.approx(sum(-a * math.log(a) for a in layer), rel=1e-5)


@pytest.mark.parametrize("layer, index", [(1, 0), (2, 1), (4, 3), (9, 3)])
def test_a_layer_is_counted_in_the_order_of_the_calls(sharp: Any, layer: int, index: int) -> None:
    rule, calls = recorded(sharp, 2, layer=layer)
    assert np.allclose(rule.of_layer, calls[index], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 4, (2, 8)])
def test_the_images_are_the_same(heads: int | tuple[int, int], dtype: torch.dtype) -> None:
    """To the last bit, for any number of heads; shares are measured in single precision."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16, 32), cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=heads, norm_num_groups=8,
    ).to(dtype)  # fmt: skip
    given = [x.to(dtype) for x in inputs(3)]
    rule = CrossAttention(STEPS)
    plain, recorded = (denoise(unet, scheduler_of(), *given, 3.0, STEPS, rules) for rules in ([], [rule]))
    assert torch.equal(plain.latents, recorded.latents) and len(cross_attentions(unet)) == 7
    assert rule.first.shape == (3, 8) and rule.first.dtype == torch.float32
    assert torch.stack(rule.last).sum(-1) == pytest.approx(1)


def test_a_unet_without_text_has_no_cross_attention() -> None:
    blocks = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
    assert cross_attentions(UNet2DModel(block_out_channels=(16,), norm_num_groups=8, **blocks)) == {}


def test_entropy_by_hand() -> None:
    assert entropy([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]]) == pytest.approx(
        [math.log(4), 0, math.log(2)]
    )
    assert attention_e([[0.5, 0.5]]) == pytest.approx([math.log(2)])


def test_detector_d_by_hand() -> None:
    """Summary tokens from index 2 on: 1/2 log 2 at first, then nothing, then all of log 2."""
    first = [[0.25, 0.25, 0.5, 0]]
    last = [[[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]]
    expected = math.log(2) + (abs(0 - math.log(2) / 2) + abs(math.log(2) - math.log(2) / 2)) / 2
    assert attention_d(first, last, [2]) == pytest.approx([expected])


def test_an_end_of_text_comes_after_the_words_and_at_most_at_the_last_index(sharp: Any) -> None:
    texts = ["sun", "red square", " ".join(CAPTIONS)]
    last = sharp.tokenizer.model_max_length - 1
    ends = ends_of_text(sharp, texts)
    assert ends[0] < ends[1] < last and ends[2] == last
    tokens = sharp.tokenizer(texts, padding="max_length", truncation=True).input_ids
    assert all(row.index(sharp.tokenizer.eos_token_id) == end for row, end in zip(tokens, ends, strict=True))
