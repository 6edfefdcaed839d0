"""The tokenizer of a base model trained from nothing reads any prompt to its end."""

from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from tests.conftest import CAPTIONS
from train.base_model.clip import train_tokenizer

VOCABULARY = 600
UNSEEN = [
    "red!",
    "tea & cup",
    "café au lait",
    "old 😀 map",
    "図書館 で",
    "naïve 'quoted' #1 @home",
    "x\u200dy\x7f",
]


@pytest.fixture(scope="module", params=["trained", "saved"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """As trained, and as a pipeline's folder gives it."""
    trained = train_tokenizer(CAPTIONS, VOCABULARY, 77)
    if request.param == "trained":
        return trained
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", UNSEEN)
def test_what_no_caption_has_is_read_to_the_end(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    inner = ids[1:-1]
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(inner)
    joined = "".join(tokenizer.convert_ids_to_tokens(inner)).replace("</w>", "")
    byte_of = {letter: byte for byte, letter in _letters().items()}
    assert bytes(byte_of[letter] for letter in joined).decode() == text.lower().replace(" ", "")


def _letters() -> dict[int, str]:
    """Byte -> printable letter (GPT-2): itself where it is printable, else the next from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def test_vocabulary_is_both_forms_of_each_byte_and_what_was_learned(tokenizer: CLIPTokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    letters = set(_letters().values())
    assert letters == set(ByteLevel.alphabet())
    assert letters | {f"{letter}</w>" for letter in letters} < set(vocabulary)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert 514 < len(vocabulary) <= VOCABULARY
    assert tokenizer.tokenize("Red SQUARE") == ["red</w>", "square</w>"]  # learned as whole words


def test_vocabulary_without_room_to_learn_still_reads_everything() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 300, 77)
    assert len(tokenizer) == 514
    assert tokenizer.tokenize("red!") == ["r", "e", "d</w>", "!</w>"]
