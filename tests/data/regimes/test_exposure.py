"""Who is shown how often: counts per pass, ordinary images going round, and streams that were cut."""

from itertools import islice

import numpy as np
import pytest

from data.regimes.exposure import Exposure


def take(exposure: Exposure, images: int, ordinary: int, count: int, start: int = 0) -> list[int]:
    return list(islice(exposure.stream(images, ordinary, seed=0, start=start), count))


def test_copies_are_exact_in_every_pass() -> None:
    exposure = Exposure(copies=7, duplicated_fraction=0.2)
    chosen = exposure.duplicated(20, seed=0)
    assert len(chosen) == 4
    for number in range(3):
        counts = np.bincount(exposure.one_pass(20, 0, 0, number), minlength=20)
        assert (counts[chosen] == 7).all()
        assert (np.delete(counts, chosen) == 1).all()


def test_repeats_of_the_source_are_multiplied_by_copies_and_weights() -> None:
    """Exactly, or in proportion: a share of 5 x 3 to 3 to 1; on average as `per_pass` says."""
    repeats = [3, 1, 3]
    exposure = Exposure(copies=2, duplicated_fraction=0.4)
    (chosen,) = exposure.duplicated(3, seed=0)
    expected = np.array(repeats) * np.where(np.arange(3) == chosen, 2, 1)
    for number in range(2):
        assert (np.bincount(exposure.one_pass(repeats, 0, 0, number)) == expected).all()
    assert exposure.per_pass(repeats, 0, 0).tolist() == expected.tolist()
    assert exposure.pass_length(repeats, 0) == expected.sum()
    flags = Exposure().is_duplicated(repeats, [2], 0)
    assert flags.tolist() == [True, False, True, False]
    weighted = Exposure(weight=5, duplicated_fraction=0.4, ordinary_share=0.5)
    likely = np.array(repeats) * np.where(np.arange(3) == chosen, 5, 1)
    average = weighted.per_pass(repeats, [1, 3], 0)
    np.testing.assert_allclose(average, [*(7 * likely / likely.sum()), 7 / 4, 21 / 4])
    counts = np.bincount(list(islice(weighted.stream(repeats, [1, 3], 0), 14_000)), minlength=5)
    np.testing.assert_allclose(counts, average * 1000, atol=4 * np.sqrt(7000 / 4))  # 4 standard deviations
    assert counts[4] - 3 * counts[3] in range(-3, 4)  # rounds are exact


def test_a_pass_is_shuffled_and_each_one_otherwise() -> None:
    exposure = Exposure(copies=3)
    first, second = (exposure.one_pass(50, 0, 0, number).tolist() for number in range(2))
    assert sorted(first) == sorted(second)
    assert first != sorted(first) and first != second


def test_the_seed_chooses_the_duplicated_ones() -> None:
    exposure = Exposure(copies=2, duplicated_fraction=0.1)
    chosen = [exposure.duplicated(100, seed).tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize("share, expected", [(0.75, 150), (0.5, 50), (0.2, 12)])  # 50 s / (1 - s), rounded
def test_ordinary_images_take_their_share_of_a_pass(share: float, expected: int) -> None:
    shown = Exposure(copies=5, ordinary_share=share).one_pass(10, 33, 0, 0)
    assert (shown >= 10).sum() == expected
    assert len(shown) == 50 + expected


def test_ordinary_images_go_round_across_passes() -> None:
    """12 a pass of 7 (more than one round in it) and 12 of 31 (a round over several passes)."""
    exposure = Exposure(copies=12, ordinary_share=0.5)
    for ordinary in (7, 31):
        shown = [exposure.one_pass(1, ordinary, 0, number) for number in range(30)]
        for passes in range(1, 31):
            counts = np.bincount(np.concatenate(shown[:passes]), minlength=1 + ordinary)
            assert counts[0] == 12 * passes
            assert counts[1:].sum() == 12 * passes and np.ptp(counts[1:]) <= 1


def test_rounds_differ() -> None:
    exposure = Exposure(copies=31, ordinary_share=0.5)
    rounds = [exposure.rounds(31, 31, 0, number).tolist() for number in range(2)]
    assert rounds[0] != rounds[1] and sorted(rounds[0]) == sorted(rounds[1]) == list(range(31))


def test_weighted_draws_follow_their_weights() -> None:
    """Chi-square of 20,000 draws, 19 degrees of freedom: 43.8 is exceeded once in a thousand seeds."""
    exposure = Exposure(weight=5, duplicated_fraction=0.25)
    weights = np.ones(20)
    weights[exposure.duplicated(20, seed=0)] = 5
    counts = np.bincount(take(exposure, 20, 0, 20_000), minlength=20)
    expected = 20_000 * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 43.8


def test_weighted_draws_keep_the_ordinary_share() -> None:
    exposure = Exposure(weight=5, duplicated_fraction=0.25, ordinary_share=0.5)
    shown = exposure.one_pass(20, 100, 0, 0)
    assert len(shown) == 40 and (shown >= 20).sum() == 20


@pytest.mark.parametrize("exposure", [
    Exposure(),
    Exposure(copies=4, duplicated_fraction=0.3, ordinary_share=0.4),
    Exposure(weight=3, duplicated_fraction=0.5, ordinary_share=0.25),
])  # fmt: skip
def test_a_stream_that_is_cut_continues_as_if_it_was_not(exposure: Exposure) -> None:
    ordinary = 13 if exposure.ordinary_share else 0
    whole = take(exposure, 10, ordinary, 150)
    for start in range(120):
        assert take(exposure, 10, ordinary, 30, start) == whole[start : start + 30]


def test_copies_and_weight_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not both"):
        Exposure(copies=2, weight=2.0, duplicated_fraction=0.5)


def test_which_images_are_duplicated() -> None:
    """Never an ordinary one, and none where nothing is shown more often."""
    shown = Exposure(copies=2, duplicated_fraction=0.2).is_duplicated(10, 3, seed=0)
    assert shown.shape == (13,) and shown.sum() == 2 and not shown[10:].any()
    assert not Exposure(duplicated_fraction=0.2).is_duplicated(10, 0, seed=0).any()


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no ordinary images"):
        take(Exposure(ordinary_share=0.5), 10, 0, 1)


@pytest.mark.parametrize("exposure, images, message", [
    (Exposure(weight=5, duplicated_fraction=0.95), 8, "0.95 is all of 8 images: lower it"),
    (Exposure(weight=5, duplicated_fraction=0.05), 1, "all of 1 images"),
    (Exposure(ordinary_share=0.05), 8, "0.05 is less than one of a pass over 8 images: raise it"),
])  # fmt: skip
def test_what_rounding_leaves_without_effect_is_refused(
    exposure: Exposure, images: int, message: str
) -> None:
    """Before a fit, and where draws are taken."""
    for act in (lambda: exposure.pass_length(images, 0), lambda: take(exposure, images, 5, 1)):
        with pytest.raises(ValueError, match=message):
            act()
