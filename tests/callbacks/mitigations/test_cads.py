"""Condition-annealed sampling: its formula, whose noise it takes, and where it ends."""

import pytest
import torch

from callbacks.mitigations.prompts.cads import CADS, annealed
from infer.denoising.hooks import DenoisingStep, GuidanceRule
from tests.callbacks.mitigations.peer_runs import assert_rows_are_independent, run

pytestmark = pytest.mark.usefixtures("one_thread")


class Kept(GuidanceRule):
    """Keeps each step's embedding."""

    def __init__(self):
        self.embeddings = []

    def step_embedding(self, step: DenoisingStep, embedding: torch.Tensor) -> torch.Tensor:
        self.embeddings.append(embedding)
        return embedding


@pytest.mark.parametrize("mix", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_formula(gamma: float, mix: float) -> None:
    """Per sample, in double precision; at mix 1 mean and deviation are the prompt's."""
    random = torch.Generator().manual_seed(0)
    y, n = 3 + 2 * torch.randn(2, 5, 7, generator=random), torch.randn(2, 5, 7, generator=random)
    for result, own, noise in zip(annealed(y, n, gamma, 0.25, mix), y.double(), n.double(), strict=True):
        noisy = gamma**0.5 * own + 0.25 * (1 - gamma) ** 0.5 * noise
        rescaled = (noisy - noisy.mean()) / noisy.std() * own.std() + own.mean()
        assert torch.allclose(result.double(), mix * rescaled + (1 - mix) * noisy, atol=1e-5)
        if mix == 1:
            assert torch.allclose(result.mean(), own.mean().float(), atol=1e-5)
            assert torch.allclose(result.std(), own.std().float(), atol=1e-5)
    assert gamma < 1 or torch.allclose(annealed(y, n, gamma, 0.25, mix), y, atol=1e-5)


def test_noise_first_then_the_prompt(pipe) -> None:
    """Fresh noise each step; between the two timesteps the share of the prompt grows."""
    kept, own = Kept(), Kept()
    run(pipe, CADS(401, 801, noise_scale=1.0), kept)
    run(pipe, own)
    y = own.embeddings[0]
    assert all(torch.equal(embedding, y) for embedding in kept.embeddings[5:])
    alike = [torch.cosine_similarity(e.flatten(), y.flatten(), 0).item() for e in kept.embeddings[:6]]
    assert alike[2:] == sorted(alike[2:]) and alike[0] < 0.3 and alike[4] > 0.8
    assert not torch.equal(kept.embeddings[0], kept.embeddings[1])
    assert [CADS().gamma(t) for t in (1000, 900, 750, 600, 0)] == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_the_noise_is_the_samples_own(pipe, noise: str) -> None:
    torch.manual_seed(0)
    first = assert_rows_are_independent(pipe, lambda: [CADS(noise=noise)])
    torch.manual_seed(1)
    assert torch.equal(first.latents, run(pipe, CADS(noise=noise)).latents)
    assert first.nfe.tolist() == run(pipe).nfe.tolist()


def test_timesteps_that_cannot_take_effect_are_refused(pipe) -> None:
    with pytest.raises(ValueError, match="must be below"):
        CADS(900, 600)
    with pytest.raises(ValueError, match="would do nothing"):
        run(pipe, CADS(901, 950))
