"""Prompts that lie in a file: the same as in a list."""

import pickle
from pathlib import Path

import pytest

from data.prompts import Prompt, load_prompts
from data.prompts.store import PromptStore, store_prompts
from tests.data.prompts.files import lines, write

PROMPTS = [
    Prompt(f"id{n}", f"text {n} \U0001f697", None if n % 3 else "", "other" if n % 5 else None)
    for n in range(23)
]


@pytest.fixture(params=[4, 1 << 14])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PromptStore:
    """In batches that are full or not."""
    monkeypatch.setattr("data.prompts.store.ROWS", request.param)
    return PromptStore(iter(PROMPTS))


def test_a_store_is_the_list(store: PromptStore) -> None:
    """In order, by position, and after a process has sent it to another."""
    for prompts in (store, pickle.loads(pickle.dumps(store))):
        assert [*prompts] == [prompts[n] for n in range(len(prompts))] == PROMPTS
        assert [*prompts.ids()] == [prompt.id for prompt in PROMPTS]
    with pytest.raises(IndexError):
        store[23]
    assert [*store.first(5)] == PROMPTS[:5] and len(store.first(5)) == 5 and len(store.first(None)) == 23
    assert not [*PromptStore([])]


def test_an_id_has_a_number(store: PromptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two have one hash."""
    for hashed in (hash, lambda key: len(key)):
        monkeypatch.setattr("data.prompts.store.hash", hashed, raising=False)
        vars(store).pop("hashes", None)
        assert store.numbers([prompt.id for prompt in PROMPTS]) == [*range(23)]
        assert store.numbers(["id99", "nothing of that length"]) == [-1, -1]
        assert store.first(5).numbers(["id7"]) in ([-1], [7])  # whoever asks knows the limit


def test_a_source_is_stored_as_it_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Repeated prompts are dropped and counted, and two prompts of one id refused."""
    rows = [{"id": f"s{n % 7}", "text": f"text {n % 7}"} for n in range(10)]
    source = write(tmp_path / "a.jsonl", lines(*rows))
    assert [*store_prompts(source)] == load_prompts(source) and len(load_prompts(source)) == 7
    assert caplog.text.count("3 prompts are repeated and used once") == 3
    source = write(tmp_path / "b.jsonl", lines(*rows, {"id": "s3", "text": "another"}))
    for load in (load_prompts, store_prompts):
        with pytest.raises(ValueError, match="id 's3' has two prompts, 'text 3' and 'another'"):
            load(source)
