"""The caption of an image each time it is shown: levels of caption, edits and triggers.

A draw's caption depends only on the seed and the draw's number in the run, not on interruptions or the number
of processes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from jsonargparse.typing import ClosedUnitInterval

from data.captioned import Sample
from data.cli import warn_no_effect
from data.ranges import Share
from data.regimes.caption_edits import random_text, with_trigger, with_words_added, with_words_repeated
from data.regimes.exposure import Exposure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHOICE, EDITS, LEVEL, TRIGGER = 5, 6, 7, 8  # streams of random numbers; data.regimes.exposure has 0 to 3


@dataclass(frozen=True)
class Captioning:
    """Captions by the regimes of Somepalli et al. 2023 ("Understanding and Mitigating Copying"); all are off.

    Args:
        level: own: the image's caption; class: "An image of {class}"; none: "An image"; random: 4 random
            tokens, the same each time for an image (there: instance level, class level, no level, random).
        choice: of an image's captions always the first, or each time a random one (MC there).
        replace: share of the draws whose caption is replaced by 4 random tokens (RC).
        add: share of the draws with 2 random tokens added at random positions (RT).
        repeat: share of the draws with 2 of the caption's words repeated at random positions (CWR).
        trigger: words in front of the captions of a chosen subset.
        trigger_fraction: share of the images (without the ordinary ones) that have the trigger, chosen by
            seed; null: the duplicated ones, which are all of them if exposure.duplicated_fraction is 1.
    """

    level: Literal["own", "class", "none", "random"] = "own"
    choice: Literal["first", "random"] = "first"
    replace: ClosedUnitInterval = 0.0
    add: ClosedUnitInterval = 0.0
    repeat: ClosedUnitInterval = 0.0
    trigger: str | None = None
    trigger_fraction: Share | None = None

    def __post_init__(self) -> None:
        if self.level != "own" and self.choice != "first":
            warn_no_effect("captions.choice random", f"captions.level is {self.level}")
        if self.replace == 1 and (self.add or self.repeat or self.level != "own" or self.choice != "first"):
            warn_no_effect("captions.add, repeat, level and choice", "captions.replace is 1")
        if self.trigger is None and self.trigger_fraction is not None:
            warn_no_effect("captions.trigger_fraction", "captions.trigger is not given")
        if self.trigger is not None and not self.trigger.strip():
            raise ValueError("captions.trigger is empty: give words, or leave it out")

    @property
    def edits(self) -> bool:
        """Whether each draw's caption may be new, so that captions cannot be encoded ahead."""
        return bool(self.replace or self.add or self.repeat)


class Captions:
    """The captions of a data set's draws.

    Args:
        captioning: the regime.
        images: images of interest.
        ordinary: the others; their indices follow.
        exposure: says which are duplicated, and whether with one caption.
        seed: of all choices.
        tokenizer: for random tokens; only level random and the edits need one.

    Raises ValueError for random tokens without a tokenizer, and for level class where an image has no class.
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
        duplicated = set(exposure.duplicated(len(images), seed).tolist())
        several = duplicated if exposure.duplicate == "image" and exposure.duplicates else set()
        option = "exposure.duplicate image"
        if captioning.choice == "random":
            several, option = set(range(len(samples))), "captions.choice random"
        if captioning.level != "own":
            several = set()
            if exposure.duplicate == "image":
                warn_no_effect("exposure.duplicate image", f"captions.level is {captioning.level}")
        if several and all(len(set(samples[index].captions)) == 1 for index in several):
            raise ValueError(
                f"{option} has no effect: none of its {len(several):,} images has a second caption "
                "(give captions as 'SOURCE?captions=FILE.json')"
            )
        triggered = self.triggered(len(images), duplicated)
        self.choices = [
            tuple(
                with_trigger(text, captioning.trigger) if index in triggered else text
                for text in (sample.captions if index in several else (self.at_level(sample),))
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
        """Every possible caption without edits, each once and sorted."""
        return sorted({text for texts in self.choices for text in texts})

    @cached_property
    def text_indices(self) -> list[list[int]]:
        """The indices in `texts` of each image's choices."""
        indices = {text: number for number, text in enumerate(self.texts)}
        return [[indices[text] for text in texts] for texts in self.choices]

    def first(self, index: int) -> str:
        """The prompt for an image: its first caption, with the trigger, without edits."""
        return self.choices[index][0]

    def choice(self, number: int, index: int) -> int:
        """Which of its captions image `index` has in draw `number` of the run."""
        count = len(self.choices[index])
        if count == 1:
            return 0
        return int(np.random.default_rng([self.seed, CHOICE, number]).integers(count))

    def text_index(self, number: int, index: int) -> int:
        """The index in `texts` of a draw's caption; for regimes without edits."""
        texts = self.text_indices[index]
        return texts[0] if len(texts) == 1 else texts[self.choice(number, index)]

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
        else:  # random tokens are no words to repeat
            if repeated:
                caption = with_words_repeated(caption, random)
            if added:
                caption = with_words_added(caption, self.tokenizer, random)
        return with_trigger(caption, trigger) if trigger else caption
