"""Bounds measured on ordinary prompts, and latents and images that keep within them."""

from pathlib import Path

import pytest
import torch

from callbacks.mitigations.guidance.broken_memories import BrokenMemoriesMild, BrokenMemoriesStrong
from callbacks.mitigations.guidance.latent_bounds import Bounds, Recorder
from data.prompts import text_id
from infer.denoising.hooks import rms
from infer.denoising.noise import sample_seed
from infer.denoising.requests import Request
from infer.denoising.sampling import denoise_requests
from tests.callbacks.mitigations.peer_runs import CPU, SCALE, STEPS, assert_rows_are_independent, run
from tests.conftest import CAPTIONS
from tests.infer.denoising.loops import requests

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = pytest.mark.parametrize("kind", [BrokenMemoriesMild, BrokenMemoriesStrong])
ORDINARY = CAPTIONS[3:]


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ordinary") / "ordinary.txt"
    path.write_text("\n".join(CAPTIONS))  # those of the run are left out
    return str(path)


def test_the_bounds_are_those_of_plain_runs(pipe, ordinary: str) -> None:
    rule = BrokenMemoriesStrong(ordinary)
    rule.check_requests(pipe, requests(3))
    run(pipe, rule)
    seen = Recorder()
    plain = [Request("", 0, text, sample_seed(0, text_id(text), 0)) for text in ORDINARY]
    denoise_requests(pipe, CPU, plain, 16, SCALE, STEPS, rules=[seen])
    for name in ("image", "update", "latents"):
        values = torch.stack(getattr(seen, name), 1)
        assert torch.allclose(rule._now[name].mean, values.mean(0), rtol=1e-3)
        assert torch.allclose(rule._now[name].std, values.std(0, correction=0), rtol=1e-2, atol=1e-4)


@BOTH
def test_within_the_bounds_nothing_changes(pipe, ordinary: str, kind: type) -> None:
    result, plain = run(pipe, kind(ordinary, gamma=1e6)), run(pipe)
    assert torch.allclose(result.latents, plain.latents, atol=1e-4)
    assert result.nfe.tolist() == plain.nfe.tolist()


def test_strong_clamps_updates_and_latents(pipe, ordinary: str) -> None:
    """At gamma 0 latents have the ordinary norm after each step; at 1 they are within the region."""
    for gamma in (0.0, 1.0):
        rule, seen = BrokenMemoriesStrong(ordinary, gamma=gamma), Recorder()
        rule.check_requests(pipe, requests(3))
        run(pipe, rule, seen)
        bounds, sizes = rule._now["latents"], torch.stack(seen.latents)
        low, high = (bounds.mean + sign * gamma * bounds.std for sign in (-1, 1))
        assert (sizes >= low[:, None] - 1e-5).all() and (sizes <= high[:, None] + 1e-5).all()


def test_the_updates_bound_acts_where_the_latents_is_wide(pipe, ordinary: str) -> None:
    rule, seen = BrokenMemoriesStrong(ordinary, gamma=0.5), Recorder()
    rule.check_requests(pipe, requests(3))
    run(pipe, rule)  # measures
    rule._bounds = {
        key: now | {"latents": Bounds(0 * now["latents"].mean, 1e9 + now["latents"].std)}
        for key, now in rule._bounds.items()
    }
    run(pipe, rule, seen)
    bounds, sizes = rule._now["update"], torch.stack(seen.update)
    low, high = (bounds.mean + sign * 0.5 * bounds.std for sign in (-1, 1))
    assert (sizes >= low[:, None] - 1e-4).all() and (sizes <= high[:, None] + 1e-4).all()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_mild_rescales_the_predicted_image(pipe, ordinary: str, prediction: str, monkeypatch) -> None:
    """At gamma 0 each step's x_0 has the ordinary norm, and its direction stays."""
    pipe.scheduler.register_to_config(prediction_type=prediction)
    images = []

    class Kept(BrokenMemoriesMild):
        def combine(self, step, prediction):
            changed = super().combine(step, prediction)
            epsilons = [step.epsilon(output) for output in (prediction, changed)]
            images.append([(step.latents - step.sigma * e) / step.alpha for e in epsilons])
            return changed

    rule = Kept(ordinary, gamma=0.0)
    rule.check_requests(pipe, requests(3))
    run(pipe, rule)
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    for index, (before, after) in enumerate(images):
        assert torch.allclose(rms(after), rule._now["image"].mean[index].expand(3), rtol=1e-2)
        assert torch.cosine_similarity(before.flatten(1), after.flatten(1)).min() > 0.999


@BOTH
def test_rows_are_independent(pipe, ordinary: str, kind: type) -> None:
    """Also of the batches in which the bounds are measured."""

    def make():
        rule = kind(ordinary, gamma=0.5)
        rule.check_requests(pipe, requests(3))
        return [rule]

    assert_rows_are_independent(pipe, make)


def test_ordinary_prompts_must_be_there(pipe, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("\n".join(CAPTIONS[:3]))
    with pytest.raises(ValueError, match="all prompts of .* are memorized"):
        BrokenMemoriesMild(str(tmp_path / "own.txt")).check_requests(pipe, requests(3))
    (tmp_path / "own.txt").write_text("\n".join(CAPTIONS[:4]))
    with pytest.raises(ValueError, match="one ordinary prompt"):
        BrokenMemoriesMild(str(tmp_path / "own.txt")).check_requests(pipe, requests(3))
