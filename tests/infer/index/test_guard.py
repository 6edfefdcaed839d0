"""The guard: what it lets through, what it has made again, what it refuses."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.mitigations.base import NoMitigation
from infer.denoising.guidance import Trace
from infer.denoising.noise import sample_seed
from infer.index.attempts import attempt_seed, with_rows
from infer.index.descriptor_index import DescriptorIndex
from infer.index.guard import Guard
from infer.metrics.similarity import CORRELATION, pixel_descriptor

RANDOM = np.random.default_rng(0)
TRAINING = [Image.fromarray(RANDOM.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]
NEW = [Image.fromarray(RANDOM.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]
GREY = Image.new("RGB", (16, 16), (9, 9, 9))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "index.safetensors"
    DescriptorIndex(pixel_descriptor(TRAINING), CORRELATION, 16, ["a", "b", "c"]).save(path)
    return path


def trace(value: int, count: int, transition: bool = False) -> Trace:
    steps, cost = torch.full((count, 2), float(value)), torch.full((count,), value)
    passed = torch.full((count,), float(value)) if transition else None
    gated = torch.ones(count, dtype=torch.bool) if transition else None
    return Trace(steps, steps, steps, steps, steps, cost, cost, passed, gated)


def test_only_copies_are_made_again_and_only_what_stays_one_is_refused(index: Path) -> None:
    """The first is new, the second a copy twice, the third always, the fourth of one colour."""
    calls = []

    def again(rows: list[int], attempt: int) -> tuple[list[Image.Image], Trace]:
        calls.append((rows, attempt))
        made = [NEW[1] if row == 1 and attempt == 3 else TRAINING[row] for row in rows]
        return made, trace(attempt, len(rows))

    images = [NEW[0], TRAINING[0], TRAINING[2], GREY]
    guarded, last = Guard(index, 0.9, attempts=4).watch(images, trace(1, 4), again)
    assert last.nfe.tolist() == [1, 6, 10, 1] and last.guidance_scale[:, 0].tolist() == [1, 3, 4, 1]
    assert calls == [([1, 2], 2), ([1, 2], 3), ([2], 4)]
    assert guarded.attempts.tolist() == [1, 3, 4, 1]
    assert guarded.refused.tolist() == [False, False, True, False]
    assert guarded.images[:2] == [NEW[0], NEW[1]] and guarded.images[3] is GREY
    assert np.unique(np.asarray(guarded.images[2])).tolist() == [128] and guarded.images[2].size == (16, 16)
    assert guarded.nearest[2] == "c" and guarded.similarity[2] == pytest.approx(1)
    assert guarded.similarity[3].isnan()


def test_one_attempt_is_none_further(index: Path) -> None:
    guard, given = Guard(index, 0.9, attempts=1), trace(1, 1)
    guarded, last = guard.watch(TRAINING[:1], given, lambda rows, attempt: pytest.fail("again"))
    assert last is given
    assert guarded.refused.tolist() == [True] and guarded.attempts.tolist() == [1]


def test_seeds_of_further_attempts_follow_from_the_samples_own() -> None:
    seed = sample_seed(0, "s0", 0)
    seeds = [attempt_seed(s, n) for s in (seed, seed + 1) for n in (2, 3)]
    assert len({seed, *seeds}) == 5 and seeds[0] == attempt_seed(seed, 2) and 0 <= min(seeds) < 2**63


def test_settings_that_would_let_all_pass(index: Path) -> None:
    for threshold in (1.0, 50.0, float("nan")):
        with pytest.raises(ValueError, match="is no similarity below 1: it lets all pass"):
            Guard(index, threshold)
    with pytest.raises(ValueError, match="attempts, 0, must be 1 or more"):
        Guard(index, 0.5, 0)


def test_options_without_an_effect_are_said(index: Path, caplog: pytest.LogCaptureFixture) -> None:
    Guard(index, 0.9, 1, stronger=[NoMitigation()], sscd="disc_mixup")
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the guard's stronger has no effect", "the guard's sscd has no effect",
    ]  # fmt: skip


def test_another_index_under_its_name_is_another_guard(index: Path) -> None:
    before = Guard(index).identity()
    DescriptorIndex(pixel_descriptor(NEW), CORRELATION, 16).save(index)
    after = Guard(index).identity()
    assert before["index_sha256"] != after["index_sha256"] and before["threshold"] == 0.85


def test_a_guard_can_be_sent_to_another_process(index: Path) -> None:
    """Also after its first check, which loads a model."""
    guard = Guard(index, 0.9, 1)
    expected = guard.nearest(TRAINING)[0]
    assert "descriptor" in vars(guard) and "descriptor" not in vars(copy.deepcopy(guard))
    assert torch.equal(pickle.loads(pickle.dumps(guard)).nearest(TRAINING)[0], expected)


def test_the_trace_is_that_of_the_last_attempt_and_the_cost_that_of_all() -> None:
    first = trace(1, 3)
    both = with_rows(first, [2], trace(7, 1, transition=True))
    assert both.guidance_scale[:, 0].tolist() == [1, 1, 7]
    assert both.nfe.tolist() == [1, 1, 8] == both.gradient_passes.tolist()
    assert both.transition_timestep.isnan().tolist() == [True, True, False]
    assert both.gated.tolist() == [False, False, True]
    assert first.nfe.tolist() == [1, 1, 1]
