"""The hooks of prompts, embeddings, steps and random draws, by rules of a few lines."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from infer.denoising.hooks import Batch, DenoisingStep, GuidanceRule, Request
from infer.denoising.loop import denoise
from infer.denoising.noise import initial_noise
from infer.denoising.sampling import make_images
from tests.conftest import random_pipeline
from tests.infer.denoising.loops import inputs, requests, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, STEPS, FULL = torch.device("cpu"), 6, 7.5


def run(unet: Any, *rules: GuidanceRule, given: tuple[Tensor, Tensor, Tensor] | None = None, **options):
    return denoise(unet, scheduler_of(), *(given or inputs(3)), FULL, STEPS, rules, **options)


class NoPrompt(GuidanceRule):
    def change_prompts(self, pipe: Any, requests: Sequence[Request]) -> Sequence[Request]:
        return [request._replace(prompt="sun") for request in requests]


class Shown(GuidanceRule):
    """Keeps the prompts that it is given."""

    def prepare(self, pipe: Any, requests: Sequence[Request], device: torch.device) -> None:
        self.prompts = [request.prompt for request in requests]


def test_all_prompts_are_changed_before_a_rule_prepares() -> None:
    """In any order of the rules."""
    shown = Shown()
    make_images(random_pipeline(), CPU, requests(2), 16, FULL, STEPS, rules=[shown, NoPrompt()])
    assert shown.prompts == ["sun", "sun"]


class Empty(GuidanceRule):
    """The prompt in place of the empty prompt."""

    def unconditional_embedding(self, batch: Batch) -> Tensor:
        return batch.conditional_embedding


class Faded(GuidanceRule):
    """From the third step on the empty prompt in place of the prompt."""

    def before_denoising(self, batch: Batch) -> None:
        self.empty = batch.unconditional_embedding

    def step_embedding(self, step: DenoisingStep, embedding: Tensor) -> Tensor:
        return embedding if step.index < 2 else self.empty


def test_embeddings_are_the_rules_of_both_halves_and_of_each_step(unet: torch.nn.Module) -> None:
    assert (run(unet, Empty()).difference_rms == 0).all()
    assert ((run(unet, Faded()).difference_rms > 0) == (torch.arange(STEPS) < 2)).all()


class Held(GuidanceRule):
    """Every second step is undone."""

    def after_step(self, step: DenoisingStep, before: Tensor, after: Tensor) -> Tensor:
        self.scale = step.scale
        return before if step.index % 2 else after


def test_a_rule_changes_what_a_step_did(unet: torch.nn.Module) -> None:
    """The next step starts there; a step also has the scale that it was mixed with."""
    rule, seen = Held(), []

    class Seen(GuidanceRule):
        def observe(self, step: DenoisingStep) -> None:
            seen.append(step.latents)

    run(unet, rule, Seen())
    assert [torch.equal(a, b) for a, b in zip(seen[:-1], seen[1:], strict=True)] == [False, True] * 2 + [
        False
    ]
    assert rule.scale.tolist() == [FULL] * 3


class Drawing(GuidanceRule):
    def initial_noise(self, batch: Batch) -> Tensor:
        drawn = [torch.randn(4, 8, 8, generator=own) for own in batch.own_generators("Drawing")]
        return torch.stack(drawn)


def test_a_rule_draws_from_the_samples_own_seeds(unet: torch.nn.Module) -> None:
    """Not from the batch, nor from the solver's generators, nor the same as under another name."""

    def drawn(seeds: list[int]) -> Tensor:
        noise, generators = initial_noise(seeds, (4, 8, 8), torch.float32)
        rule = Drawing()
        states = [generator.get_state() for generator in generators]
        batches = []

        class Kept(GuidanceRule):
            def before_denoising(self, batch: Batch) -> None:
                batches.append(batch)

        run(
            unet,
            rule,
            Kept(),
            given=(noise, *(x[: len(seeds)] for x in inputs(3)[1:])),
            generators=generators,
        )
        assert all(torch.equal(g.get_state(), state) for g, state in zip(generators, states, strict=True))
        other = batches[0].own_generators("another")
        assert not torch.equal(torch.randn(4, 8, 8, generator=other[0]), batches[0].noise[0])
        return batches[0].noise

    whole = drawn([3, 5, 7])
    assert torch.equal(torch.cat([drawn([7]), drawn([3])]), whole[[2, 0]])
