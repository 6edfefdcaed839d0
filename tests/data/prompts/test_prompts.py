"""Reading prompts from text, JSON lines, the command line and training runs; their ids, and repetitions."""

import gzip
import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from data.prompts import Prompt, inline_prompts, load_prompts, without
from tests.conftest import CAPTIONS
from tests.data.prompts.files import exposures, lines, write


def test_text_files_hold_a_prompt_a_line(tmp_path: Path) -> None:
    """Blank lines and a byte order mark do not matter; other Unicode line ends belong to the prompt."""
    source = write(tmp_path / "a.txt", "\ufeff a cat \n\n\tein Löwe\u2028im Gras\n")
    assert [prompt.text for prompt in load_prompts(source)] == ["a cat", "ein Löwe\u2028im Gras"]


def test_json_lines_hold_a_caption_prompt_or_text_and_may_hold_an_id(tmp_path: Path) -> None:
    rows = lines({"caption": "one", "id": "x"}, {"prompt": "two", "id": 7}, {"text": "three", "id": None})
    source = write(tmp_path / "a.jsonl", rows + "\n")
    text = write(tmp_path / "a.txt", "three")
    assert load_prompts(source) == [
        Prompt("x", "one"),
        Prompt("7", "two"),
        Prompt(load_prompts(text)[0].id, "three"),
    ]


@pytest.mark.parametrize("name, head, rows", [
    ("a.jsonl", "", [json.dumps({"caption": text}) for text in ("one", "two", "three")]),
    ("a.jsonl", "", [json.dumps({"caption": "one", "index": number}) for number in (3, 1, 2)]),
    ("a.csv", ",prompt,urls\n", ["0,one,x", "1,two,x", "2,three,y"]),
    ("a.csv", ";Caption;Index\n", ["0;one;30", "1;one;10", "2;two;20"]),
])  # fmt: skip
def test_ids_are_stable_under_reordering(tmp_path: Path, name: str, head: str, rows: list[str]) -> None:
    there = load_prompts(write(tmp_path / name, head + "\n".join(rows)))
    back = load_prompts(write(tmp_path / name, head + "\n".join(rows[::-1])))
    assert len(there) == 3 and back == there[::-1]


def test_a_prompt_that_comes_again_is_used_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(write(tmp_path / "a.txt", "one\ntwo\none\n one\n"))
    assert [prompt.text for prompt in prompts] == ["one", "two"]
    assert "2 prompts are repeated" in caplog.text


@pytest.mark.parametrize("name, content", [
    ("a.csv", ";Caption;Index\n0;one;7\n1;two;8\n2;one;7\n"),
    ("a.jsonl", lines({"text": "one", "id": 7}, {"text": "two", "id": 8}, {"text": " one", "id": "7"})),
])  # fmt: skip
def test_a_row_that_comes_again_is_used_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str
) -> None:
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(write(tmp_path / name, content))
    assert prompts == [Prompt("7", "one"), Prompt("8", "two")]
    assert "1 prompts are repeated" in caplog.text


def test_prompts_from_the_command_line_are_those_of_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = inline_prompts([" one", "two, three", "one"])
    assert prompts == load_prompts(write(tmp_path / "a.txt", "one\ntwo, three"))
    assert "1 prompts are repeated" in caplog.text


@pytest.mark.parametrize("texts", [[], [""], ["one", " \n"]])
def test_an_empty_prompt_on_the_command_line_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="an empty prompt"):
        inline_prompts(texts)


def test_a_training_run_gives_the_captions_that_it_duplicated(tmp_path: Path) -> None:
    source = exposures(tmp_path, [False, True, True], [9, 200, 1])
    assert load_prompts(source) == [Prompt("s1", "caption s1"), Prompt("s2", "caption s2")]


def test_a_training_run_gives_nothing_that_it_did_not_show(tmp_path: Path) -> None:
    """A short run may not have come to its duplicated images; then others do not stand in for them."""
    source = exposures(tmp_path, [False, True, True], [9, 0, 1])
    assert [prompt.id for prompt in load_prompts(source)] == ["s2"]
    with pytest.raises(ValueError, match="holds no prompt"):
        load_prompts(exposures(tmp_path, [False, True, True], [9, 0, 0]))


@pytest.mark.parametrize("duplicated", [[False, False, False], None], ids=["fit", "stream"])
def test_a_training_run_without_duplication_gives_all_that_it_showed(
    tmp_path: Path, duplicated: list[bool] | None
) -> None:
    """As the paper's first scenario: LAION-10k, each image as often as the others."""
    source = exposures(tmp_path, duplicated, [3, 0, 4])
    assert [prompt.id for prompt in load_prompts(source)] == ["s0", "s2"]


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        load_prompts(str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match="no exposures.parquet"):
        load_prompts(str(tmp_path))
    write(tmp_path / "config.yaml", "seed: 0")  # a run that has not finished
    with pytest.raises(FileNotFoundError, match="no exposures.parquet"):
        load_prompts(str(tmp_path))


def test_memorized_prompts_are_left_out_by_their_text() -> None:
    """Whatever their ids, letter case and spaces; of two that say the same the first stays."""
    prompts = [Prompt("1", "A  cat"), Prompt("2", "a dog"), Prompt("3", "A dog"), Prompt("4", "a cow")]
    assert without(prompts, [Prompt("x", "a Cat ")]) == ([prompts[1], prompts[3]], 2)


def images(folder: Path, captions: dict[str, str]) -> str:
    for stem, caption in captions.items():
        Image.new("RGB", (4, 4)).save(folder / f"{stem}.png")
        write(folder / f"{stem}.txt", caption)
    return str(folder)


def test_a_folder_of_captioned_images_gives_captions_and_ids(tmp_path: Path) -> None:
    source = images(tmp_path, {"cat": "a cat", "cat2": "a cat", "löwe": " ein Löwe\n"})
    assert load_prompts(source) == [
        Prompt("cat", "a cat"),
        Prompt("cat2", "a cat"),
        Prompt("löwe", "ein Löwe"),
    ]


def test_shards_give_captions_and_ids(tmp_path: Path, tiny_shards: Path) -> None:
    """A shard, a packed one, a brace pattern, and a folder of shards are the same prompts."""
    expected = [Prompt(f"s{number}", caption) for number, caption in enumerate(CAPTIONS)]
    packed = tmp_path / "00000.tar.gz"
    packed.write_bytes(gzip.compress(tiny_shards.read_bytes()))
    pattern = str(tiny_shards).replace("00000.tar", "{00000..00000}.tar")
    for source in (str(tiny_shards), str(packed), pattern, str(tmp_path)):
        assert load_prompts(source) == expected, source


def test_a_training_run_with_pictures_in_it_is_a_training_run(tmp_path: Path) -> None:
    images(tmp_path, {"grid": "not a prompt"})
    assert [prompt.id for prompt in load_prompts(exposures(tmp_path, [True], [1]))] == ["s0"]


def test_what_is_wrong_with_captioned_images_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    with pytest.raises(ValueError, match="no captioned image in .*: 1 without caption; "):
        load_prompts(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no file matches .*00001.tar"):
        load_prompts(str(tmp_path / "{00001..00002}.tar"))
