"""Somepalli et al.: what is inserted into prompts and embeddings, and that it is each image's own."""

from collections import Counter

import pytest
import torch

from callbacks.mitigations.prompts.embedding_noise import EmbeddingNoise
from callbacks.mitigations.prompts.prompt_edit import PromptEdit
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from tests.callbacks.mitigations.inputs import changed
from tests.infer.denoising.loops import inputs

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = "an old map of the sea"


def requests(count: int = 40) -> list[Request]:
    return [Request("s", sample, PROMPT, 500 + sample) for sample in range(count)]


@pytest.mark.parametrize("insertions", [2, 4])
@pytest.mark.parametrize("edit", ["word", "number", "repeat"])
def test_words_are_inserted_at_random_positions(pipe, edit: str, insertions: int) -> None:
    changed_requests = PromptEdit(edit, insertions).change_prompts(pipe, requests())
    prompts = [request.prompt.split() for request in changed_requests]
    own = PROMPT.split()
    added = [list((Counter(words) - Counter(own)).elements()) for words in prompts]
    assert {len(words) for words in added} == {insertions}
    for words in prompts:
        rest = iter(words)
        assert all(word in rest for word in own)  # in their order
    if edit == "number":
        assert all(0 <= int(word) < 100_000 for words in added for word in words)
    if edit == "repeat":
        assert {word for words in added for word in words} == set(own)
    assert len({words[0] for words in prompts}) > 1 and len({words[-1] for words in prompts}) > 1
    assert len({request.prompt for request in changed_requests}) > 10  # each image has its own


def test_an_edit_is_the_seeds_and_no_one_elses(pipe) -> None:
    """Not of the batch, the order or global state."""
    rule, rows = PromptEdit("word"), requests(8)
    whole = rule.change_prompts(pipe, rows)
    torch.manual_seed(0)
    assert [rule.change_prompts(pipe, [row])[0] for row in reversed(rows)] == whole[::-1]


def test_the_model_is_shown_the_edited_prompt(pipe) -> None:
    rule, rows = PromptEdit("number", 2), requests(2)
    edited = rule.change_prompts(pipe, rows)
    options = (torch.device("cpu"), rows, 16, 7.5, 3)
    given = make_images(pipe, options[0], edited, *options[2:])[1]
    assert torch.equal(make_images(pipe, *options, rules=[rule])[1].latents, given.latents)


def test_the_embeddings_noise_is_standard_normal_times_its_scale() -> None:
    batch, before = changed(None, EmbeddingNoise(0.1)), inputs(3)
    noise = (batch.conditional_embedding - before[2]) / 0.1
    assert noise.mean().abs() < 0.1 and abs(noise.std() - 1) < 0.1
    assert torch.equal(batch.unconditional_embedding, before[1])
    alone = [changed(None, EmbeddingNoise(0.1), rows=[row]).conditional_embedding for row in range(3)]
    assert torch.equal(torch.cat(alone), batch.conditional_embedding)
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(3)
    assert correlation.abs().max() < 0.3  # another one for each image


def test_the_released_code_disturbs_the_empty_prompt_too() -> None:
    batch, before = changed(None, EmbeddingNoise(0.1, unconditional=True)), inputs(3)
    noise = (batch.unconditional_embedding - before[1]) / 0.1
    assert abs(noise.std() - 1) < 0.1
    assert not torch.allclose(noise, (batch.conditional_embedding - before[2]) / 0.1, atol=0.1)
