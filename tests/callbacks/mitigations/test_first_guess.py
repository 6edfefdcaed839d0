"""The first guess in a world whose exact predictions are known: a memorized image, another one, and noise."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.first_guess import FirstGuess
from callbacks.mitigations.guidance.interval import GuidanceInterval
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.hooks import Batch
from infer.denoising.loop import denoise, prepare
from tests.callbacks.mitigations.peer_runs import assert_rows_are_independent
from tests.infer.denoising.loops import KEPT, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, STEPS, SCALE, COUNT = (4, 8, 8), 20, 1.5, 24
MEMORIZED, OTHER = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(3))
SHARE = 0.8  # of the memorized image among those of its prompt
GUESSES = 32  # so many that the guess is surely nearer to it than to the other


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


def rule(attempts: int = 40, timestep: float = 500, **options: Any) -> FirstGuess:
    """So many further attempts, all with their transition at 900."""
    return FirstGuess([900.0] * attempts, 1.0, GUESSES, timestep=timestep, **options)


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
    assert (kept == GUESSES + 2 * STEPS).all() and (made_again > GUESSES + 2 * STEPS).all()


def test_an_abandoned_sample_is_evaluated_no_more() -> None:
    """Both predictions of the steps down to 451 of twenty, then those of one further attempt, to its end."""
    made = run([rule(attempts=1)])
    first = 2 * sum(t > 500 for t in made.timesteps[0].tolist()) + 2
    again = 2 * STEPS - sum(t > 900 for t in made.timesteps[0].tolist())
    assert set(made.nfe.tolist()) == {GUESSES + 2 * STEPS, GUESSES + first + again}


def test_a_prompt_that_is_not_memorized_has_ordinary_guidance() -> None:
    plain, guarded = run([], ordinary=True), run([rule()], ordinary=True)
    assert torch.equal(plain.latents, guarded.latents)
    assert (guarded.nfe == plain.nfe + GUESSES).all() and guarded.transition_timestep is None


def test_the_attempts_have_one_transition_after_the_other() -> None:
    """Nothing is below a threshold of -1: the last attempt is kept, and it is that of the last transition."""
    last, noises = 500.0, []

    class Kept(FirstGuess):
        def before_denoising(self, batch: Batch) -> None:
            super().before_denoising(batch)
            again = batch.denoise

            def denoise_and_keep(rules: list, rows: Tensor, noise: Tensor) -> Any:
                noises.append((rules[0].timestep, noise))
                return again(rules, rows, noise)

            batch.denoise = denoise_and_keep

    made = run([Kept([900.0, 800.0, last], threshold=-1.0)])
    assert [timestep for timestep, _ in noises] == [900.0, 800.0, last]
    assert len({noise.sum().item() for _, noise in noises}) == 3
    expected = denoise(
        World(), scheduler_of(), noises[-1][1], torch.zeros(COUNT, 2, 3), torch.ones(COUNT, 2, 3), SCALE,
        STEPS, [StaticTransition(last, -2.0)],
    )  # fmt: skip
    assert torch.allclose(made.latents, expected.latents, atol=1e-4)


def test_samples_do_not_depend_on_their_batch(pipe) -> None:
    together = assert_rows_are_independent(pipe, lambda: [FirstGuess([650.0], threshold=0.0)])
    assert together.nfe.max() > 8 + 20  # at least one was made again


def test_a_transition_of_the_run_decides_the_first_attempt() -> None:
    """The attempts that replace a copy have their own alone."""
    first = StaticTransition(timestep=500, guidance_before=0.0)
    plain, guarded = run([first]), run([first, rule(timestep=200)])
    kept = guarded.nfe == plain.nfe + GUESSES
    assert kept.any() and not kept[copies(plain.latents)].any() and not copies(guarded.latents).any()
    assert torch.allclose(guarded.latents[kept], plain.latents[kept], atol=1e-4)


@pytest.mark.parametrize("held", [StaticTransition(300.0, 0.5), GuidanceInterval(900.0, 999.0)])
def test_a_sample_whose_guidance_is_held_back_is_compared_later(held: Mitigation) -> None:
    """At its transition, or, where none comes, at the last step."""
    plain, guarded = run([held]), run([held, rule(attempts=1, timestep=800)])
    before, made_again = copies(plain.latents), guarded.nfe > GUESSES + plain.nfe
    assert before.any() and torch.equal(before, made_again)
    assert torch.allclose(guarded.latents[~before], plain.latents[~before], atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"timestep": 0}, {"transitions": [990.0], "timestep": 960}, {"transitions": [960.0]}]
)
def test_what_has_no_place_in_the_schedule_is_refused(options: dict) -> None:
    """The schedule of twenty steps runs from 951 to 1; transitions before it are left out."""
    with pytest.raises(ValueError, match="outside of the schedule, which runs from 951 to 1"):
        prepare(scheduler_of(), SCALE, STEPS, [FirstGuess(**options)])
    assert [attempt.timestep for attempt in FirstGuess([960.0, 900.0]).attempts(951)] == [900.0]


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="transitions are empty"):
        FirstGuess([])
    with pytest.raises(ValueError, match="before the transition at 600"):
        FirstGuess([900.0, 600.0, 300.0])
