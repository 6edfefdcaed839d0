"""Reading prompts: every form they come in, their ids, and what is wrong with them in one line."""

import json
import logging
from pathlib import Path

import pandas as pd
import pytest

from data.prompts import Prompt, load_prompts


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def exposures(folder: Path, duplicated: list[bool], times_shown: list[int]) -> str:
    ids = [f"s{number}" for number in range(len(duplicated))]
    captions = [f"caption {key}" for key in ids]
    pd.DataFrame(
        {"id": ids, "caption": captions, "duplicated": duplicated, "times_shown": times_shown}
    ).to_parquet(folder / "exposures.parquet")
    return str(folder)


def test_text_files_hold_a_prompt_a_line(tmp_path: Path) -> None:
    """Blank lines and a byte order mark do not matter; other Unicode line ends belong to the prompt."""
    source = write(tmp_path / "a.txt", "\ufeff a cat \n\n\tein Löwe\u2028im Gras\n")
    assert [prompt.text for prompt in load_prompts(source)] == ["a cat", "ein Löwe\u2028im Gras"]


def test_json_lines_hold_a_caption_prompt_or_text_and_may_hold_an_id(tmp_path: Path) -> None:
    rows = lines({"caption": "one", "id": "x"}, {"prompt": "two", "id": 7}, {"text": "three", "id": None})
    source = write(tmp_path / "a.jsonl", rows + "\n")
    text = write(tmp_path / "a.txt", "three")
    assert load_prompts(source) == [("x", "one"), ("7", "two"), (load_prompts(text)[0].id, "three")]


def test_ids_do_not_depend_on_the_order_or_on_the_other_prompts(tmp_path: Path) -> None:
    """They decide the seeds."""
    there = load_prompts(write(tmp_path / "a.txt", "one\ntwo\nthree"))
    back = load_prompts(write(tmp_path / "b.txt", "three\none"))
    assert back == [there[2], there[0]]
    assert len({prompt.id for prompt in there}) == 3


def test_a_prompt_that_comes_again_is_used_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(write(tmp_path / "a.txt", "one\ntwo\none\n one\n"))
    assert [prompt.text for prompt in prompts] == ["one", "two"]
    assert "2 prompts come more than once" in caplog.text


def test_a_training_run_gives_the_captions_that_it_duplicated(tmp_path: Path) -> None:
    source = exposures(tmp_path, [False, True, True], [9, 200, 0])
    assert load_prompts(source) == [Prompt("s1", "caption s1"), Prompt("s2", "caption s2")]


def test_a_training_run_without_duplication_gives_all_that_it_showed(tmp_path: Path) -> None:
    """As the paper's first scenario: LAION-10k, each image as often as the others."""
    source = exposures(tmp_path, [False, False, False], [3, 0, 4])
    assert [prompt.id for prompt in load_prompts(source)] == ["s0", "s2"]


@pytest.mark.parametrize(
    "name, content, error",
    [
        ("a.txt", " \n\n", "holds no prompt"),
        ("a.jsonl", "", "holds no prompt"),
        ("a.csv", "one", "only .txt, .jsonl"),
        ("a.jsonl", lines({"text": "fine"}) + "{broken", "line 2: not an object"),
        ("a.jsonl", lines({"title": "one"}), "line 1: not an object"),
        ("a.jsonl", lines({"caption": None}), "line 1: not an object"),
        ("a.jsonl", lines(["caption"]), "line 1: not an object"),
        ("a.jsonl", lines("caption"), "line 1: not an object"),
        ("a.jsonl", "\n" + lines({"caption": " "}), "line 2: the prompt is empty"),
        (
            "a.jsonl",
            lines({"text": "one", "id": 1}, {"text": "two", "id": "1"}),
            "'1' stands on 'one' and on",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, content: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        load_prompts(write(tmp_path / name, content))


@pytest.mark.parametrize("key", ["../x", "a/b", "a\\b", ".hidden", "", "a\0b"])
def test_an_id_that_could_leave_its_folder_is_refused(tmp_path: Path, key: str) -> None:
    """Ids name image files."""
    with pytest.raises(ValueError, match="cannot name a file"):
        load_prompts(write(tmp_path / "a.jsonl", lines({"text": "one", "id": key})))


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        load_prompts(str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match="no exposures.parquet"):
        load_prompts(str(tmp_path))
