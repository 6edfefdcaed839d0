"""What is said of an image each time it is shown: levels of caption, edits and triggers.

A draw's caption depends on the seed and the draw's number in the run alone: not on how a run is cut, nor on
the number of processes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from data.caption_edits import random_text, with_trigger, with_words_added, with_words_repeated
from data.captioned import Sample
from data.exposure import Exposure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHOICE, EDITS, LEVEL, TRIGGER = 5, 6, 7, 8  # streams of random numbers; data.exposure has 0 to 3


@dataclass(frozen=True)
class Captioning:
    """Captions by the regimes of Somepalli et al. 2023 ("Understanding and Mitigating Copying"); all are off.

    Args:
        level: own: the image's caption; class: "An image of {class}"; none: "An image"; random: 4 random
            tokens, the same each time for an image (there: instance level, class level, no level, random).
        choice: of an image's captions always the first, or each time a random one (MC there).
        replace: share of the draws whose caption is replaced by 4 random tokens (RC).
        add: share of the draws with 2 random tokens added at random places (RT).
        repeat: share of the draws with 2 of the caption's words repeated at random places (CWR).
        trigger: words in front of the captions of a chosen subset.
        trigger_fraction: share of the images (without the ordinary ones) that have the trigger, chosen by
            seed; null: the duplicated ones, which are all of them if exposure.duplicated_fraction is 1.
    """

    level: Literal["own", "class", "none", "random"] = "own"
    choice: Literal["first", "random"] = "first"
    replace: float = 0.0
    add: float = 0.0
    repeat: float = 0.0
    trigger: str | None = None
    trigger_fraction: float | None = None

    def __post_init__(self) -> None:
        for name in ("replace", "add", "repeat"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"captions.{name} must be in [0, 1], not {getattr(self, name)}")
        if self.level != "own" and self.choice != "first":
            raise ValueError(f"captions.choice random has no effect at level {self.level}: leave one out")
        if self.replace == 1 and (self.add or self.repeat):
            raise ValueError("captions.replace 1 leaves no caption to add to or repeat from: lower it")
        if self.replace == 1 and (self.level != "own" or self.choice != "first"):
            raise ValueError(
                "captions.replace 1 leaves no caption for level or choice: lower it, or leave them out"
            )
        if self.trigger is None:
            if self.trigger_fraction is not None:
                raise ValueError("captions.trigger_fraction needs captions.trigger")
            return
        if not self.trigger.strip():
            raise ValueError("captions.trigger is empty: give words, or leave it out")
        if self.trigger_fraction is not None and not 0 < self.trigger_fraction <= 1:
            raise ValueError(f"captions.trigger_fraction must be in (0, 1], not {self.trigger_fraction}")

    @property
    def edits(self) -> bool:
        """Whether captions differ from draw to draw without end, so that they cannot be encoded ahead."""
        return bool(self.replace or self.add or self.repeat)


class Captions:
    """The captions of a data set's draws.

    Args:
        captioning: the regime.
        images: images of interest.
        ordinary: the others; their indices come after.
        exposure: says which are duplicated, and whether with one caption.
        seed: of all choices.
        tokenizer: for random tokens; only level random and the edits need one.

    Raises ValueError for a regime that cannot take effect on these images, or lacks their classes.
    """

    def __init__(
        self,
        captioning: Captioning,
        images: Sequence[Sample],
        ordinary: Sequence[Sample],
        exposure: Exposure,
        seed: int,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
    ):
        self.captioning, self.seed, self.tokenizer = captioning, seed, tokenizer
        samples = [*images, *ordinary]
        if tokenizer is None and (captioning.level == "random" or captioning.replace or captioning.add):
            raise ValueError("random tokens (captions.level random, replace, add) need the model's tokenizer")
        if exposure.duplicate == "image" and captioning.choice == "random":
            raise ValueError(
                "exposure.duplicate image has no effect beside captions.choice random, which is the same "
                "for all images: leave one out"
            )
        if exposure.duplicate == "image" and captioning.replace == 1:
            raise ValueError("exposure.duplicate image has no effect at captions.replace 1: leave one out")
        duplicated = set(exposure.duplicated(len(images), seed).tolist())
        alone = duplicated if exposure.duplicate == "image" else set()
        if captioning.choice == "random":
            alone = set(range(len(samples)))
        if alone and captioning.level != "own":
            raise ValueError(f"exposure.duplicate image has no effect at captions.level {captioning.level}")
        if alone and all(len(set(samples[index].captions)) == 1 for index in alone):
            option = "captions.choice random" if captioning.choice == "random" else "exposure.duplicate image"
            raise ValueError(
                f"{option} has no effect: none of its {len(alone):,} images has a second caption "
                "(a source's own are given as 'SOURCE?captions=FILE.json')"
            )
        triggered = self.triggered(len(images), duplicated)
        self.choices = [
            tuple(
                with_trigger(text, captioning.trigger) if index in triggered else text
                for text in (sample.captions if index in alone else (self.at_level(sample),))
            )
            for index, sample in enumerate(samples)
        ]
        self.is_triggered = np.array([index in triggered for index in range(len(samples))])

    def triggered(self, images: int, duplicated: set[int]) -> set[int]:
        if self.captioning.trigger is None:
            return set()
        if self.captioning.trigger_fraction is None:
            return duplicated
        count = max(1, round(images * self.captioning.trigger_fraction))
        return set(np.random.default_rng([self.seed, TRIGGER]).permutation(images)[:count].tolist())

    def at_level(self, sample: Sample) -> str:
        """The caption, before any edit and trigger."""
        match self.captioning.level:
            case "own":
                return sample.caption
            case "none":
                return "An image"
            case "class":
                if sample.label is None:
                    raise ValueError(
                        f"captions.level class needs a class for each image, and {sample.id!r} has none: "
                        "give class folders, or a table with a column of classes"
                    )
                return f"An image of {sample.label}"
        key = int.from_bytes(hashlib.sha256(sample.id.encode()).digest()[:8])
        return random_text(self.tokenizer, np.random.default_rng([self.seed, LEVEL, key]))

    @cached_property
    def texts(self) -> list[str]:
        """Every caption that can come up, without the edits, each once and sorted."""
        return sorted({text for texts in self.choices for text in texts})

    @cached_property
    def places(self) -> list[np.ndarray]:
        """Where each image's choices stand in `texts`."""
        place = {text: number for number, text in enumerate(self.texts)}
        return [np.array([place[text] for text in texts]) for texts in self.choices]

    def first(self, index: int) -> str:
        """What an image is asked for by: its first caption, with the trigger, without edits."""
        return self.choices[index][0]

    def choice(self, number: int, index: int) -> int:
        """Which of its captions image `index` has in draw `number` of the run."""
        count = len(self.choices[index])
        if count == 1:
            return 0
        return int(np.random.default_rng([self.seed, CHOICE, number]).integers(count))

    def place(self, number: int, index: int) -> int:
        """The caption of a draw, as its place in `texts`; for regimes without edits."""
        return int(self.places[index][self.choice(number, index)])

    def text(self, number: int, index: int) -> str:
        """The caption of a draw, edited. The trigger stays in front of it."""
        caption = self.choices[index][self.choice(number, index)]
        options = self.captioning
        if not options.edits:
            return caption
        trigger = options.trigger if self.is_triggered[index] else None
        if trigger:
            caption = caption.removeprefix(trigger).removeprefix(" ")
        random = np.random.default_rng([self.seed, EDITS, number])
        replaced, added, repeated = random.random(3) < (options.replace, options.add, options.repeat)
        if replaced:
            caption = random_text(self.tokenizer, random)
        else:  # what is made up of random tokens has no words to repeat
            if repeated:
                caption = with_words_repeated(caption, random)
            if added:
                caption = with_words_added(caption, self.tokenizer, random)
        return with_trigger(caption, trigger) if trigger else caption
