"""Padding embeddings: which become 0, what stays, and what cannot be replaced."""

import pytest
import torch

from callbacks.mitigations.prompts.pads import REPLACEMENT, Pads, masked_pads
from infer.denoising.hooks import Batch
from infer.denoising.sampling import embed
from infer.models.pipeline import load_pipeline
from tests.callbacks.mitigations.peer_runs import CPU, assert_rows_are_independent, run
from tests.conftest import BASE, CAPTIONS
from tests.infer.denoising.loops import requests

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bundled():
    return load_pipeline(str(BASE))


def changed(pipe, rule: Pads, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings before and after."""
    wanted = requests(count)
    rule.check_requests(pipe, wanted)
    rule.prepare(pipe, wanted, CPU)
    before = embed(pipe, [request.prompt for request in wanted], CPU)
    batch = Batch(pipe.unet, pipe.scheduler, torch.zeros(count, 1), before, before, 7.5)
    return before, rule.conditional_embedding(batch)


def test_the_share_next_to_the_end() -> None:
    """round(0.7 d) of the d pads, from the end on."""
    masked = masked_pads(torch.tensor([2, 5, 9]), 10, 0.7)
    assert [row.nonzero()[:, 0].tolist() for row in masked] == [[3, 4, 5, 6, 7], [6, 7, 8], []]
    assert (
        masked_pads(torch.tensor([2]), 10, 0.0).sum() == 0
        and masked_pads(torch.tensor([2]), 10, 1.0).sum() == 7
    )


def test_mask_keeps_the_prompt_and_its_end(bundled) -> None:
    before, after = changed(bundled, Pads(share=0.5))
    for old, new, caption in zip(before, after, CAPTIONS, strict=False):
        end = len(bundled.tokenizer(caption).input_ids) - 1
        zeros = round((len(old) - 1 - end) / 2)
        assert torch.equal(new[: end + 1], old[: end + 1]) and torch.equal(
            new[end + 1 + zeros :], old[end + 1 + zeros :]
        )
        assert new[end + 1 : end + 1 + zeros].eq(0).all() and zeros > 0


def test_replace_pads_before_encoding(bundled) -> None:
    """The prompt's own embeddings do not see what follows them."""
    before, after = changed(bundled, Pads("replace"))
    number = bundled.tokenizer.convert_tokens_to_ids(REPLACEMENT)
    for old, new, caption in zip(before, after, CAPTIONS, strict=False):
        ids = bundled.tokenizer(caption).input_ids
        padded = torch.tensor([ids + [number] * (len(old) - len(ids))])
        expected = bundled.text_encoder(padded)[0][0]
        end = len(ids) - 1
        assert torch.allclose(new[:end], old[:end], atol=1e-5) and new[end].eq(0).all()
        assert torch.allclose(new[end + 1 :], expected[end + 1 :], atol=1e-5)
        assert (new[end + 1 :] - old[end + 1 :]).abs().max() > 0.1


def test_rows_are_independent_and_nothing_costs_more(pipe) -> None:
    result = assert_rows_are_independent(pipe, lambda: [Pads()])
    plain = run(pipe)
    assert result.nfe.tolist() == plain.nfe.tolist()
    assert (result.latents - plain.latents).abs().max() > 1e-3


def test_what_cannot_take_effect(bundled, caplog: pytest.LogCaptureFixture) -> None:
    """A tokenizer that pads with "!" has nothing to replace; full prompts have no pads."""
    full = [request._replace(prompt="red square " * 20) for request in requests(1)]
    Pads().check_requests(bundled, [*full, *requests(1)])
    assert "1 of 2 prompts fill the text encoder" in caplog.text
    bundled.tokenizer.pad_token = REPLACEMENT
    try:
        with pytest.raises(ValueError, match="pads with '!' already: use form mask"):
            Pads("replace").check_requests(bundled, requests(1))
    finally:
        bundled.tokenizer.pad_token = bundled.tokenizer.eos_token
