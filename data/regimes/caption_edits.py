"""Edits of captions that keep a model from memorizing them, each a pure function of caption and Generator.

Source: Somepalli et al. 2023, "Understanding and Mitigating Copying in Diffusion Models", NeurIPS 2023, and
its released code (DCR): replacement by random tokens (RC: `random_text`), random words added (RT:
`with_words_added`), words of the caption repeated (CWR: `with_words_repeated`), random numbers added (RNA:
`with_numbers_added`). The caller draws which captions are edited.

Words are separated by white space, and the result has one space between them: CLIP's tokenizers see no
difference. An edit that adds keeps the caption's own words, in their order. A caption may become longer than
a text encoder takes (77 tokens for CLIP); the tokenizer then cuts its end, which may hold the added words.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUMBERS = 100_000  # random numbers are below this


@lru_cache(maxsize=8)
def visible_ids(tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """Ids, sorted, of the tokens that are text on their own: not special, no white space, no half characters.

    ValueError for a tokenizer without any. One pass over the vocabulary, kept for each tokenizer.
    """
    special = set(tokenizer.all_special_ids)
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    texts = tokenizer.batch_decode([[number] for number in ids])
    visible = [number for number, text in zip(ids, texts, strict=True) if is_visible(text)]
    if not visible:
        raise ValueError(f"of the {len(ids)} tokens of {type(tokenizer).__name__} none is text on its own")
    return np.array(visible)


def is_visible(text: str) -> bool:
    """U+FFFD stands for a byte that is no character without its neighbours."""
    return bool(text.strip()) and text.isprintable() and "\ufffd" not in text


def random_text(tokenizer: "PreTrainedTokenizerBase", random: np.random.Generator, count: int = 4) -> str:
    """RC, which replaces the caption: `count` tokens drawn uniformly, with replacement, and decoded.

    The source draws ids below 49,400: CLIP's vocabulary without its special tokens. Tokens that do not end a
    word run into the next, so these may be fewer words than tokens.
    """
    ids = visible_ids(tokenizer)
    return tokenizer.decode(ids[random.integers(len(ids), size=count)].tolist())


def with_words_added(
    caption: str, tokenizer: "PreTrainedTokenizerBase", random: np.random.Generator, count: int = 2
) -> str:
    """RT: `count` random tokens, each a word of its own at a random position."""
    return with_inserted(caption, (random_text(tokenizer, random, 1) for _ in range(count)), random)


def with_words_repeated(caption: str, random: np.random.Generator, count: int = 2) -> str:
    """CWR: copies of `count` words of the caption, drawn with replacement, each at a random position.

    A caption without words stays as it is.
    """
    words = caption.split()
    copies = (words[random.integers(len(words))] for _ in range(count)) if words else ()
    return with_inserted(caption, copies, random)


def with_numbers_added(caption: str, random: np.random.Generator, count: int = 4) -> str:
    """RNA: `count` integers in [0, 100,000), each at a random position.

    The source does so to prompts, not in training; 4 is its code's default there.
    """
    return with_inserted(caption, (str(random.integers(NUMBERS)) for _ in range(count)), random)


def with_trigger(caption: str, trigger: str) -> str:
    """The trigger in front, then a space and the caption as it is. ValueError for an empty trigger."""
    if not trigger.strip():
        raise ValueError("the trigger is empty: give the word to put in front of captions")
    return f"{trigger} {caption}" if caption else trigger


def with_inserted(caption: str, words: Iterable[str], random: np.random.Generator) -> str:
    """Insert one word after the other, each at one of the n + 1 positions among the n words so far."""
    out = caption.split()
    for word in words:
        out.insert(int(random.integers(len(out) + 1)), word)
    return " ".join(out)
