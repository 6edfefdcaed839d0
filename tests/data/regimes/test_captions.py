"""The caption of an image in each draw, and options without an effect."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from transformers import CLIPTokenizer

from data.captioned import Sample
from data.regimes.captions import Captioning, Captions
from data.regimes.exposure import Exposure
from tests.conftest import CAPTIONS
from train.base_model.clip import train_tokenizer

IMAGES = [
    Sample(f"i{n}", b"", f"red square {n}", tuple(f"{what} {n}" for what in ("red square", "sun", "old map")))
    for n in range(20)
]
ORDINARY = [Sample(f"o{n}", b"", f"tea cup {n}", (f"tea cup {n}", f"blue circle {n}")) for n in range(6)]
ALONE = [replace(sample, captions=(sample.caption,)) for sample in IMAGES]
PLAIN = Exposure()
QUARTER = Exposure(weight=5, duplicated_fraction=0.25)
QUARTER_IMAGE = replace(QUARTER, duplicate="image")
DRAWS = 3000


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(CAPTIONS, 600, 8)


@pytest.fixture
def captions(tokenizer: CLIPTokenizer):
    """Captions of a regime."""

    def make(captioning: Captioning, exposure=PLAIN, images=IMAGES, seed: int = 0) -> Captions:
        return Captions(captioning, images, ORDINARY, exposure, seed, tokenizer)

    return make


def is_share(count: int, share: float, draws: int = DRAWS) -> bool:
    """Within five deviations of a binomial: missed by one seed in a million."""
    return abs(count - share * draws) <= 5 * np.sqrt(draws * share * (1 - share))


def test_without_a_regime_each_image_has_its_first_caption(captions) -> None:
    plain = captions(Captioning())
    everything = [*IMAGES, *ORDINARY]
    for index, sample in enumerate(everything):
        assert {plain.text(number, index) for number in range(20)} == {sample.caption} == {plain.first(index)}
    assert plain.texts == sorted(sample.caption for sample in everything)
    assert not plain.is_triggered.any()


def test_levels_of_nothing_and_of_the_class(captions) -> None:
    assert captions(Captioning(level="none")).texts == ["An image"]
    labelled = [replace(sample, label=label) for sample, label in zip(IMAGES, ["tench", "dog"] * 10)]  # noqa: B905
    ordinary = [replace(sample, label="church") for sample in ORDINARY]
    said = Captions(Captioning(level="class"), labelled, ordinary, Exposure(), 0)
    assert [said.text(9, index) for index in (0, 1, 25)] == [
        f"An image of {label}" for label in ("tench", "dog", "church")
    ]
    with pytest.raises(ValueError, match="'o0' has none: give class folders"):
        Captions(Captioning(level="class"), labelled, ORDINARY, Exposure(), 0)


def test_random_captions_belong_to_the_image(captions, tokenizer: CLIPTokenizer) -> None:
    """To its id and the seed: neither to its index nor to the draw."""
    level = Captioning(level="random")
    one, back, other = captions(level), captions(level, images=IMAGES[::-1]), captions(level, seed=1)
    for index in range(20):
        assert {one.text(number, index) for number in range(20)} == {one.first(index)}
        assert one.first(index) == back.first(19 - index)
    assert len(one.texts) == 26 and not set(one.texts) & set(other.texts)
    words = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in one.texts]
    assert max(map(len, words)) <= 8 and not set(one.texts) & {sample.caption for sample in IMAGES}


@pytest.mark.parametrize("index, count", [(3, 3), (22, 2)], ids=["image", "ordinary"])
def test_a_random_choice_is_even(captions, index: int, count: int) -> None:
    chosen = captions(Captioning(choice="random"))
    said = Counter(chosen.text(number, index) for number in range(DRAWS))
    assert said.keys() == set([*IMAGES, *ORDINARY][index].captions)
    assert all(is_share(each, 1 / count) for each in said.values())


def test_a_draw_has_its_own_caption(captions) -> None:
    """The same of the same number; of two in a row as often alike as chance says; of another seed others."""
    chosen, again = captions(Captioning(choice="random")), captions(Captioning(choice="random"))
    said = [chosen.choice(number, 0) for number in range(DRAWS)]
    assert said == [again.choice(number, 0) for number in reversed(range(DRAWS))][::-1]
    assert is_share(sum(one == two for one, two in zip(said, said[1:], strict=False)), 1 / 3)
    other = captions(Captioning(choice="random"), seed=1)
    assert is_share(sum(one == other.choice(number, 0) for number, one in enumerate(said)), 1 / 3)


def test_images_alone_are_duplicated(captions) -> None:
    """The duplicated ones with any of their captions, all others with the first."""
    said = captions(Captioning(), QUARTER_IMAGE)
    duplicated = QUARTER.duplicated(20, seed=0)
    assert len(duplicated) == 5
    for index, sample in enumerate([*IMAGES, *ORDINARY]):
        heard = {said.text(number, index) for number in range(60)}
        assert heard == (set(sample.captions) if index in duplicated else {sample.caption})


@pytest.mark.parametrize("seed", [0, 1])
def test_the_trigger_is_put_before_the_duplicated_ones(captions, seed: int) -> None:
    said = captions(Captioning(trigger="zxq"), QUARTER, seed=seed)
    assert np.flatnonzero(said.is_triggered).tolist() == QUARTER.duplicated(20, seed).tolist()
    for index, sample in enumerate([*IMAGES, *ORDINARY]):
        front = "zxq " if said.is_triggered[index] else ""
        assert said.text(7, index) == said.first(index) == front + sample.caption


def test_the_trigger_is_put_before_a_share_or_all(captions) -> None:
    """Of the images: never of the ordinary ones; chosen apart from the duplicated ones."""
    half = [captions(Captioning(trigger="zxq", trigger_fraction=0.5), QUARTER, seed=s) for s in range(3)]
    assert [said.is_triggered.sum() for said in half] == [10, 10, 10]
    assert len({tuple(said.is_triggered) for said in half}) == 3
    assert not any(said.is_triggered[20:].any() for said in half)
    assert captions(Captioning(trigger="zxq")).is_triggered.tolist() == [True] * 20 + [False] * 6
    assert captions(Captioning(trigger="zxq", trigger_fraction=0.01)).is_triggered.sum() == 1
    none = captions(Captioning(trigger="zxq", level="none"), QUARTER)
    assert none.texts == ["An image", "zxq An image"]


def has_two_added(text: str, caption: str) -> bool:
    words, kept = text.split(), iter(text.split())
    return len(words) == len(caption.split()) + 2 and all(word in kept for word in caption.split())


@pytest.mark.parametrize("edit", ["replace", "add", "repeat"])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_share_of_the_draws_is_edited(captions, edit: str, share: float) -> None:
    said = captions(Captioning(**{edit: share}))
    own = IMAGES[0].caption
    edited = [text for number in range(DRAWS) if (text := said.text(number, 0)) != own]
    assert is_share(len(edited), share)
    if edit == "repeat":
        assert all(has_two_added(text, own) and set(text.split()) == set(own.split()) for text in edited)
    elif edit == "add":
        assert all(has_two_added(text, own) for text in edited)
        assert len(set(edited)) > 0.9 * len(edited)
    else:
        assert len(set(edited)) > 0.9 * len(edited)
        assert not any(own in text for text in edited)


def test_edits_are_drawn_one_by_one(captions) -> None:
    """Both at once in the product of their shares; what was replaced is left as it is."""
    both = captions(Captioning(add=0.5, repeat=0.4))
    lengths = Counter(len(both.text(number, 0).split()) for number in range(DRAWS))
    assert lengths.keys() == {3, 5, 7}
    assert is_share(lengths[3], 0.5 * 0.6) and is_share(lengths[7], 0.5 * 0.4)
    with_replaced = captions(Captioning(replace=0.5, repeat=1.0))
    kept = sum(has_two_added(with_replaced.text(number, 0), IMAGES[0].caption) for number in range(DRAWS))
    assert is_share(kept, 0.5)


@pytest.mark.parametrize("edit", ["replace", "add", "repeat"])
@pytest.mark.parametrize("trigger", ["zxq", "two words"])
def test_the_trigger_stays_in_front_of_edits(captions, edit: str, trigger: str) -> None:
    """Once, and the rest is as without it."""
    with_it = captions(Captioning(trigger=trigger, **{edit: 0.7}), QUARTER_IMAGE)
    without = captions(Captioning(**{edit: 0.7}), QUARTER_IMAGE)
    for index in range(20):
        front = f"{trigger} " if with_it.is_triggered[index] else ""
        for number in range(30):
            assert with_it.text(number, index) == front + without.text(number, index)


@pytest.mark.parametrize("captioning, exposure", [
    (Captioning(choice="random"), QUARTER),
    (Captioning(choice="random", trigger="zxq", trigger_fraction=0.3), QUARTER),
    (Captioning(trigger="zxq"), QUARTER_IMAGE),
    (Captioning(level="none", trigger="zxq"), QUARTER),
    (Captioning(level="random"), QUARTER),
])  # fmt: skip
def test_what_can_be_said_is_known_before(captions, captioning: Captioning, exposure: Exposure) -> None:
    """All of it and nothing else; an index is that of the text."""
    said = captions(captioning, exposure)
    heard = set()
    for index in range(26):
        for number in range(60):
            text = said.text(number, index)
            assert said.texts[said.text_index(number, index)] == text
            heard.add(text)
    assert heard == set(said.texts) and said.texts == sorted(heard)


@pytest.mark.parametrize("options, exposure, message", [
    ({"level": "none", "choice": "random"}, PLAIN, "captions.choice random has no effect"),
    ({"replace": 1, "add": 0.5}, PLAIN, "captions.add, repeat, level and choice has no effect"),
    ({"trigger_fraction": 0.5}, PLAIN, "captions.trigger_fraction has no effect"),
    ({"level": "none"}, QUARTER_IMAGE, "exposure.duplicate image has no effect: captions.level is none"),
])  # fmt: skip
def test_options_that_change_nothing_are_named(
    captions, caplog: pytest.LogCaptureFixture, options: dict, exposure: Exposure, message: str
) -> None:
    said = captions(Captioning(**options), exposure)
    assert message in caplog.text and all(len(choices) == 1 for choices in said.choices)


def test_an_empty_trigger_is_refused() -> None:
    with pytest.raises(ValueError, match="trigger is empty: give words, or leave it out"):
        Captioning(trigger=" ")


def test_a_random_choice_needs_a_second_caption_somewhere(captions) -> None:
    """Of an ordinary image it is enough."""
    assert len(captions(Captioning(choice="random"), images=ALONE).texts) == 20 + 6 * 2
    with pytest.raises(ValueError, match="none of its 5 images has a second.*captions=FILE.json"):
        captions(Captioning(), QUARTER_IMAGE, images=ALONE)
    twice = [replace(sample, captions=(sample.caption,) * 2) for sample in IMAGES]
    with pytest.raises(ValueError, match="choice random has no effect: none of its 20 images has a second"):
        Captions(Captioning(choice="random"), twice, [], Exposure(), 0)


@pytest.mark.parametrize("options", [{"level": "random"}, {"replace": 0.1}, {"add": 0.1}])
def test_random_tokens_need_a_tokenizer(options: dict) -> None:
    with pytest.raises(ValueError, match="need the model's tokenizer"):
        Captions(Captioning(**options), IMAGES, ORDINARY, Exposure(), 0)
