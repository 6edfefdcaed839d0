"""Edits of captions: what they add, where, and what of the caption stays."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from transformers import CLIPTokenizer

from data.regimes.caption_edits import (
    random_text,
    visible_ids,
    with_numbers_added,
    with_words_added,
    with_words_repeated,
)
from tests.conftest import BASE
from train.base_model.clip import train_tokenizer

CAPTION = "A café, at night: (two) people's 3-legged dogs!"
DRAWS = 4000


@pytest.fixture(scope="module", params=["bundled", "trained"])
def tokenizer(request: pytest.FixtureRequest) -> CLIPTokenizer:
    if request.param == "bundled":
        return CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    return train_tokenizer(["red square", "blue circle", "old map of a café"], 600, 8)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=["RT", "CWR", "RNA"])
def edit(request: pytest.FixtureRequest, tokenizer: CLIPTokenizer) -> Callable[..., str]:
    """(caption, random, count) -> caption, of each edit that adds."""
    added = {"CWR": with_words_repeated, "RNA": with_numbers_added}
    added["RT"] = lambda caption, random, count: with_words_added(caption, tokenizer, random, count)
    return added[request.param]


def left(words: list[str], kept: list[str]) -> list[str]:
    """The words beside `kept`, which must stand among them in their order."""
    rest, wanted = [], iter([*kept, None])
    next_word = next(wanted)
    for word in words:
        if word == next_word:
            next_word = next(wanted)
        else:
            rest.append(word)
    assert next_word is None, f"{next_word!r} of {kept} is not where it was in {words}"
    return rest


def is_even(values: Counter, kinds: int) -> bool:
    """Chi-square against even counts: its mean is kinds - 1, its variance 2 (kinds - 1); five deviations."""
    even = values.total() / kinds
    chi = sum((count - even) ** 2 / even for count in values.values()) + (kinds - len(values)) * even
    return len(values) <= kinds and chi < kinds - 1 + 5 * (2 * (kinds - 1)) ** 0.5


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_captions_words_stay_in_their_order(
    edit: Callable, random: np.random.Generator, count: int
) -> None:
    for _ in range(50):
        words = edit(CAPTION, random, count).split(" ")
        assert len(left(words, CAPTION.split())) == count


def test_an_edit_comes_from_the_generator_alone(edit: Callable, tokenizer: CLIPTokenizer) -> None:
    """The same for the same seed, others for others, whatever numpy's own state is."""
    first = [edit(CAPTION, np.random.default_rng(seed), 2) for seed in range(20)]
    np.random.seed(3)
    assert first == [edit(CAPTION, np.random.default_rng(seed), 2) for seed in range(20)]
    assert len(set(first)) > 15
    texts = [random_text(tokenizer, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_every_position_is_as_likely(random: np.random.Generator) -> None:
    """Both ends too: of the first of two words 4 positions among 3 words, of the second then 5."""
    positions: Counter = Counter()
    for _ in range(DRAWS):
        words = with_numbers_added("a b c", random, 1).split()
        positions[next(n for n, word in enumerate(words) if word.isdigit())] += 1
    assert set(positions) == {0, 1, 2, 3} and is_even(positions, 4)
    pairs: Counter = Counter()
    for _ in range(DRAWS):
        words = with_numbers_added("a b c", random, 2).split()
        pairs[tuple(n for n, word in enumerate(words) if word.isdigit())] += 1
    assert len(pairs) == 10 and is_even(pairs, 10)  # 4 * 5 ways, two to each pair of positions


def test_every_word_is_as_likely_to_be_repeated(random: np.random.Generator) -> None:
    """With replacement, and only the caption's own: never a copy of a copy more often."""
    pairs = Counter()
    for _ in range(DRAWS):
        counts = Counter(with_words_repeated("a b c", random, 2).split())
        assert counts.keys() == {"a", "b", "c"} and counts.total() == 5
        pairs["".join(sorted((counts - Counter("abc")).elements()))] += 1
    even = Counter({pair: count / (1 if pair[0] == pair[1] else 2) for pair, count in pairs.items()})
    assert len(pairs) == 6 and all(abs(count - DRAWS / 9) < 5 * (DRAWS / 9) ** 0.5 for count in even.values())


def test_numbers_are_below_100_000(random: np.random.Generator) -> None:
    numbers = [int(with_numbers_added("", random, 1)) for _ in range(DRAWS)]
    assert 0 <= min(numbers) < 100 and 99_900 < max(numbers) < 100_000
    assert is_even(Counter(number // 10_000 for number in numbers), 10)


def test_tokens_are_drawn_evenly_from_those_that_can_be_seen(
    tokenizer: CLIPTokenizer, random: np.random.Generator
) -> None:
    """No special token, no half of a character, no white space; and of the others each."""
    ids = visible_ids(tokenizer)
    texts = [tokenizer.decode([number]) for number in ids.tolist()]
    assert not set(ids.tolist()) & set(tokenizer.all_special_ids)
    assert all(text.strip() == text and text.isprintable() and "\ufffd" not in text for text in texts)
    others = set(range(len(tokenizer))) - set(ids.tolist()) - set(tokenizer.all_special_ids)
    lost = [tokenizer.decode([number]) for number in others]
    assert lost and all("\ufffd" in text or not text.strip() or not text.isprintable() for text in lost)
    drawn = Counter(random_text(tokenizer, random, 1) for _ in range(20 * len(ids)))
    assert drawn.keys() <= set(texts) and len(drawn) > 0.99 * len(set(texts))
    share = Counter(texts)  # a token that ends a word reads like one that does not
    chi = sum((drawn[text] - 20 * share[text]) ** 2 / (20 * share[text]) for text in share)
    assert abs(chi - len(share)) < 5 * (2 * len(share)) ** 0.5


def test_captions_of_one_word_and_of_none(tokenizer: CLIPTokenizer, random: np.random.Generator) -> None:
    """White space makes no words."""
    assert with_words_repeated("cat", random) == "cat cat cat"
    for empty in ("", " \n"):
        assert with_words_repeated(empty, random) == ""
        assert len(with_words_added(empty, tokenizer, random).split(" ")) == 2
        assert len(with_numbers_added(empty, random, 3).split(" ")) == 3
    assert with_words_repeated("  a\t a\n", random) == "a a a a"
