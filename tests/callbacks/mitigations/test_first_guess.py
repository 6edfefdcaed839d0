"""The first guess in a world whose exact predictions are known: a memorized image, another one, and noise."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from callbacks.mitigations.first_guess import FirstGuess, layout
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from infer.denoising.loop import denoise, prepare
from tests.callbacks.mitigations.peer_runs import assert_rows_are_independent
from tests.infer.denoising.loops import KEPT, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, STEPS, SCALE, COUNT = (4, 8, 8), 20, 1.5, 24
MEMORIZED, OTHER = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(3))
SHARE = 0.8  # of the memorized image among those of its prompt


class World:
    """Called like a UNet; the images of an embedding of ones are two, those of zeros standard normal.

    E[x_0 | x] = sum_k p_k image_k with p = softmax(-||x - alpha image_k||^2 / (2 sigma^2) + log share_k), or
    alpha x; eps = (x - alpha x_0) / sigma. Counts its rows.
    """

    def __init__(self, prediction: str = "epsilon"):
        self.prediction, self.rows = prediction, 0

    def __call__(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **options: Any) -> tuple[Tensor]:
        self.rows += len(x)
        alpha = KEPT[int(t)] ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        images = torch.stack([MEMORIZED, OTHER])
        distance = (x[:, None] - alpha * images).flatten(2).square().sum(2)
        weights = (torch.tensor([SHARE, 1 - SHARE]).log() - distance / (2 * sigma**2)).softmax(1)
        two = torch.einsum("bk,kchw->bchw", weights, images)
        knows = encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1) > 0.5
        clean = torch.where(knows, two, alpha * x)
        eps = (x - alpha * clean) / sigma
        return (eps if self.prediction == "epsilon" else (eps - sigma * x) / alpha,)


def run(rules: list, ordinary: bool = False, prediction: str = "epsilon", kind: type = DDIMScheduler):
    world, noise = World(prediction), torch.randn((COUNT, *SHAPE), generator=torch.Generator().manual_seed(0))
    prompts = torch.zeros(COUNT, 2, 3) if ordinary else torch.ones(COUNT, 2, 3)
    seeds = [torch.Generator().manual_seed(n) for n in range(COUNT)]
    scheduler = scheduler_of(kind, prediction=prediction)
    made = denoise(world, scheduler, noise, torch.zeros(COUNT, 2, 3), prompts, SCALE, STEPS, rules, seeds)
    assert made.nfe.sum() == world.rows
    return made


def rule(attempts: int = 40, **options: Any) -> FirstGuess:
    again = StaticTransition(timestep=900, guidance_before=1.0)
    return FirstGuess(again, attempts=attempts, **options)


def copies(latents: Tensor) -> Tensor:
    return F.cosine_similarity(latents.flatten(1), MEMORIZED.flatten()[None]) > 0.5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_what_would_be_the_memorized_image_is_the_other_one(prediction: str, kind: type) -> None:
    """A sample that is not memorized stays what it was, whatever happens to the others beside it."""
    plain, guarded = (run(rules, prediction=prediction, kind=kind) for rules in ([], [rule()]))
    before = copies(plain.latents)
    assert 0.5 < before.float().mean() < 1 and not copies(guarded.latents).any()
    assert torch.allclose(guarded.latents[~before], plain.latents[~before], atol=1e-4)
    assert F.cosine_similarity(guarded.latents.flatten(1), OTHER.flatten()[None]).min() > 0.9
    kept, made_again = guarded.nfe[~before], guarded.nfe[before]
    assert (kept == 8 + 2 * STEPS).all() and (made_again > 8 + 2 * STEPS).all()


def test_an_abandoned_sample_is_evaluated_no_more() -> None:
    """Both predictions of the steps down to 451 of twenty, then those of one further attempt."""
    made = run([rule(attempts=2)])
    first = 2 * sum(t > 500 for t in made.timesteps[0].tolist()) + 2
    again = 2 * STEPS - sum(t > 900 for t in made.timesteps[0].tolist())
    assert set(made.nfe.tolist()) == {8 + 2 * STEPS, 8 + first + again}


def test_a_prompt_that_is_not_memorized_has_ordinary_guidance() -> None:
    plain, guarded = run([], ordinary=True), run([rule()], ordinary=True)
    assert torch.equal(plain.latents, guarded.latents)
    assert (guarded.nfe == plain.nfe + 8).all() and guarded.transition_timestep is None


def test_where_no_attempt_helps_the_least_similar_is_kept() -> None:
    """Nothing is below a threshold of -1: of four attempts, the first one of which is no choice."""
    made = run([rule(attempts=4, threshold=-1.0)])
    others = [run([rule(attempts=n, threshold=-1.0)]) for n in (2, 3)]
    cosines = torch.stack([(layout(x.latents) * layout(MEMORIZED[None])).sum(1) for x in (made, *others)])
    assert (cosines[0] <= cosines[1:].amin(0) + 1e-4).all() and (cosines[1] > cosines[0] + 0.1).any()


def test_samples_do_not_depend_on_their_batch(pipe) -> None:
    again = StaticTransition(timestep=650, guidance_before=-2.0)
    together = assert_rows_are_independent(pipe, lambda: [FirstGuess(again, threshold=0.0, attempts=2)])
    assert together.nfe.max() > 8 + 20  # at least one was made again


def test_a_transition_of_the_run_decides_the_first_attempt() -> None:
    """The attempts that replace a copy are under the rule `again` alone."""
    first = StaticTransition(timestep=500, guidance_before=0.0)
    plain, guarded = run([first]), run([first, rule(timestep=200)])
    kept = guarded.nfe == plain.nfe + 8
    assert kept.any() and not kept[copies(plain.latents)].any() and not copies(guarded.latents).any()
    assert torch.allclose(guarded.latents[kept], plain.latents[kept], atol=1e-4)


@pytest.mark.parametrize("options, words", [
    ({"timestep": 990}, "not within the schedule"), ({"timestep": 0}, "not within the schedule"),
])  # fmt: skip
def test_a_comparison_outside_of_the_schedule_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prepare(scheduler_of(), SCALE, STEPS, [rule(**options)])


def test_a_rule_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="attempts must be 2 or more"):
        rule(attempts=1)
    with pytest.raises(ValueError, match="static or dynamic"):
        FirstGuess(TwoPassTransition())
