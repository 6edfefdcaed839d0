"""Reading prompts: every form they come in, their ids, and what is wrong with them in one line."""

import gzip
import json
import logging
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from data.prompts import Prompt, inline_prompts, load_prompts, text_id
from tests.conftest import CAPTIONS

SUFFIXES = ("txt", "jsonl", "csv", "tsv")
# As NeMo and MemBench publish theirs: the nameless first column is the row's number
NEMO = ''';Caption;URL;type;mean_sscd;max_sscd;Index
0;Mothers, and a hippo;https://a.b/c?d=1,2;VM;0.9;0.91;964841345
1;"Ornament; round";https://a.b/e;TM;;;1030727993
2;"Passion Pit's ""Lifted
Up""";https://a.b/f;MV;0.2;0.3;8
'''
MEMBENCH = """,prompt,urls
0,fire us army garden flag,['https://a.b/c_600x.jpg?v=1']
1,##relieve cream / navy rug,"['https://a.b/d.jpg?c=1', 'https://a.b/e']"
"""
WEN = """{"caption": "Mothers, and a hippo", "index": 964841345, "url": "https://a.b/c"}
{"caption": "Mothers, and a hippo", "index": 202664, "url": "https://a.b/d"}
"""


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
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
    assert load_prompts(source) == [
        Prompt("x", "one"),
        Prompt("7", "two"),
        Prompt(load_prompts(text)[0].id, "three"),
    ]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        (
            "nemo.csv",
            NEMO,
            [
                Prompt("964841345", "Mothers, and a hippo"),
                Prompt("1030727993", "Ornament; round"),
                Prompt("8", 'Passion Pit\'s "Lifted\nUp"'),
            ],
        ),
        (
            "membench.csv",
            MEMBENCH,
            [
                Prompt(text_id("fire us army garden flag"), "fire us army garden flag"),
                Prompt(text_id("##relieve cream / navy rug"), "##relieve cream / navy rug"),
            ],
        ),
        (
            "wen.jsonl",
            WEN,  # one text under two indexes is two prompts
            [Prompt("964841345", "Mothers, and a hippo"), Prompt("202664", "Mothers, and a hippo")],
        ),
        ("a.tsv", "text\tID\na cat, sitting; still\tx\n", [Prompt("x", "a cat, sitting; still")]),
        ("tabs.csv", 'id\tprompt\nx\t"a\tcat"\n', [Prompt("x", "a\tcat")]),
        (
            "one column.tsv",
            "caption\na cat, sitting; still\n",
            [Prompt(text_id(t := "a cat, sitting; still"), t)],
        ),
        ("one column.csv", "caption\na cat; still\n", [Prompt(text_id(t := "a cat; still"), t)]),
        ("spaced.CSV", 'id, "prompt"\n1, "a cat, sitting"\n\n', [Prompt("1", "a cat, sitting")]),
        ("blank first.csv", "\n\nid;text\n1;a cat\n", [Prompt("1", "a cat")]),
        ("a.JSONL", lines({"Prompt": "a cat", "Index": 3}), [Prompt("3", "a cat")]),
        ("both.jsonl", lines({"text": "a cat", "id": "x", "index": 3}), [Prompt("x", "a cat")]),
        ("gap.jsonl", lines({"text": "a cat", "id": None, "index": 3}), [Prompt("3", "a cat")]),
        (
            "gap.csv",
            'index,id,text\n3," ",a cat\n,,a dog\n',
            [Prompt("3", "a cat"), Prompt(text_id("a dog"), "a dog")],
        ),
    ],
)
def test_published_and_handmade_forms(
    tmp_path: Path, name: str, content: str, expected: list[Prompt]
) -> None:
    assert load_prompts(write(tmp_path / name, content)) == expected


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_ids_that_pandas_made_floats_are_the_whole_numbers_that_they_were(
    tmp_path: Path, suffix: str
) -> None:
    """A column with a gap becomes a column of floats; the row with the gap has its id from the text."""
    rows = pd.DataFrame({"caption": ["a cat", "a dog"], "index": [1030727993, None]})
    source = tmp_path / f"a.{suffix}"
    rows.to_csv(source) if suffix == "csv" else rows.to_json(source, orient="records", lines=True)
    assert "1030727993.0" in source.read_text()
    assert load_prompts(str(source)) == [Prompt("1030727993", "a cat"), Prompt(text_id("a dog"), "a dog")]


def test_ids_keep_their_digits(tmp_path: Path) -> None:
    """They are read as text: leading zeros, more digits than a float holds, and points stay."""
    source = write(tmp_path / "a.csv", "id,text\n007,one\n12345678901234567890,two\n1.05,three\nnew.0,four\n")
    ids = [prompt.id for prompt in load_prompts(source)]
    assert ids == ["007", "12345678901234567890", "1.05", "new.0"]


@pytest.mark.parametrize("column", ["negative_prompt", "negative", "Negative_Prompt"])
@pytest.mark.parametrize(
    "name, cell, expected",
    [
        ("a.csv", "blurry", "blurry"),
        ("a.csv", '"blurry, dark"', "blurry, dark"),
        ("a.csv", "", ""),
        ("a.csv", "NaN", None),
        ("a.jsonl", '"blurry"', "blurry"),
        ("a.jsonl", '""', ""),
        ("a.jsonl", "null", None),
        ("a.jsonl", "NaN", None),
    ],
)
def test_a_negative_prompt_may_be_empty_or_missing(
    tmp_path: Path, column: str, name: str, cell: str, expected: str | None
) -> None:
    content = (
        f"text,{column}\na cat,{cell}\n" if name == "a.csv" else f'{{"text": "a cat", "{column}": {cell}}}'
    )
    assert load_prompts(write(tmp_path / name, content))[0].negative == expected


@pytest.mark.parametrize("column", ["alternative_prompt", "alternative", "ALTERNATIVE"])
@pytest.mark.parametrize(
    "name, cell, expected",
    [
        ("a.csv", "a dog", "a dog"),
        ("a.csv", " ", None),
        ("a.jsonl", '"a dog"', "a dog"),
        ("a.jsonl", '""', None),
        ("a.jsonl", "null", None),
        ("a.jsonl", "NaN", None),
    ],
)
def test_an_empty_alternative_is_none(
    tmp_path: Path, column: str, name: str, cell: str, expected: str | None
) -> None:
    content = (
        f"text,{column}\na cat,{cell}\n" if name == "a.csv" else f'{{"text": "a cat", "{column}": {cell}}}'
    )
    assert load_prompts(write(tmp_path / name, content)) == [
        Prompt(text_id("a cat"), "a cat", None, expected)
    ]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", "one\nzwei: Löwe\nthree"),
        ("a.jsonl", lines({"text": "one", "index": 1}, {"text": "zwei: Löwe"}) + '{"text": "three"}'),
        ("a.csv", ',text,index\n0,one,1\n1,"zwei: Löwe",\n2,three,'),
        ("a.tsv", "text\tid\none\t1\nzwei: Löwe\t\nthree\t"),
    ],
)
def test_windows_writes_the_same_prompts(tmp_path: Path, name: str, content: str) -> None:
    """A byte order mark, CRLF and a newline at the end change no text and no id."""
    plain = load_prompts(write(tmp_path / name, content))
    windows = "\ufeff" + content.replace("\n", "\r\n") + "\r\n"
    assert load_prompts(write(tmp_path / name, windows)) == plain
    assert [prompt.text for prompt in plain] == ["one", "zwei: Löwe", "three"]


def test_a_newline_within_a_quoted_text_is_the_same_in_crlf(tmp_path: Path) -> None:
    content = 'text\n"a cat\nsits"\n'
    there = load_prompts(write(tmp_path / "a.csv", content))
    assert load_prompts(write(tmp_path / "b.csv", content.replace("\n", "\r\n"))) == there


def test_a_line_separator_within_a_field_ends_no_row(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", "id,text\n1,ein Löwe\u2028im Gras\n")
    assert load_prompts(source) == [Prompt("1", "ein Löwe\u2028im Gras")]


def test_ids_do_not_depend_on_the_order_or_on_the_other_prompts(tmp_path: Path) -> None:
    """They decide the seeds."""
    there = load_prompts(write(tmp_path / "a.txt", "one\ntwo\nthree"))
    back = load_prompts(write(tmp_path / "b.txt", "three\none"))
    assert back == [there[2], there[0]]
    assert len({prompt.id for prompt in there}) == 3


@pytest.mark.parametrize(
    "name, head, rows",
    [
        ("a.jsonl", "", [json.dumps({"caption": text}) for text in ("one", "two", "three")]),
        ("a.jsonl", "", [json.dumps({"caption": "one", "index": number}) for number in (3, 1, 2)]),
        ("a.csv", ",prompt,urls\n", ["0,one,x", "1,two,x", "2,three,y"]),
        ("a.csv", ";Caption;Index\n", ["0;one;30", "1;one;10", "2;two;20"]),
    ],
)
def test_ids_are_stable_under_reordering(tmp_path: Path, name: str, head: str, rows: list[str]) -> None:
    there = load_prompts(write(tmp_path / name, head + "\n".join(rows)))
    back = load_prompts(write(tmp_path / name, head + "\n".join(rows[::-1])))
    assert len(there) == 3 and back == there[::-1]


def test_the_row_number_of_a_table_is_no_id(tmp_path: Path) -> None:
    """One prompt comes by the same id from a table whose rows were numbered anew."""
    one = load_prompts(write(tmp_path / "a.csv", ",prompt\n0,one\n1,two\n"))
    other = load_prompts(write(tmp_path / "b.csv", ",prompt\n0,two\n"))
    assert other == one[1:]


def test_a_prompt_that_comes_again_is_used_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(write(tmp_path / "a.txt", "one\ntwo\none\n one\n"))
    assert [prompt.text for prompt in prompts] == ["one", "two"]
    assert "2 prompts come more than once" in caplog.text


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", ";Caption;Index\n0;one;7\n1;two;8\n2;one;7\n"),
        ("a.jsonl", lines({"text": "one", "id": 7}, {"text": "two", "id": 8}, {"text": " one", "id": "7"})),
    ],
)
def test_a_row_that_comes_again_is_used_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str
) -> None:
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(write(tmp_path / name, content))
    assert prompts == [Prompt("7", "one"), Prompt("8", "two")]
    assert "1 prompts come more than once" in caplog.text


def test_prompts_from_the_command_line_are_those_of_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = inline_prompts([" one", "two, three", "one"])
    assert prompts == load_prompts(write(tmp_path / "a.txt", "one\ntwo, three"))
    assert "1 prompts come more than once" in caplog.text


@pytest.mark.parametrize("texts", [[], [""], ["one", " \n"]])
def test_an_empty_prompt_on_the_command_line_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="an empty prompt"):
        inline_prompts(texts)


def test_a_training_run_gives_the_captions_that_it_duplicated(tmp_path: Path) -> None:
    source = exposures(tmp_path, [False, True, True], [9, 200, 0])
    assert load_prompts(source) == [Prompt("s1", "caption s1"), Prompt("s2", "caption s2")]


def test_a_training_run_without_duplication_gives_all_that_it_showed(tmp_path: Path) -> None:
    """As the paper's first scenario: LAION-10k, each image as often as the others."""
    source = exposures(tmp_path, [False, False, False], [3, 0, 4])
    assert [prompt.id for prompt in load_prompts(source)] == ["s0", "s2"]


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


def test_an_image_folder_with_metadata_gives_captions_and_ids(tmp_path: Path) -> None:
    """Its images may lie deeper."""
    (tmp_path / "train").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train/cat.png")
    write(tmp_path / "metadata.jsonl", lines({"file_name": "train/cat.png", "text": "a cat"}))
    assert load_prompts(str(tmp_path)) == [Prompt("cat", "a cat")]


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
    with pytest.raises(ValueError, match="no captioned image .*'without caption': 1"):
        load_prompts(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no shard matches .*00001.tar"):
        load_prompts(str(tmp_path / "{00001..00002}.tar"))


@pytest.mark.parametrize(
    "name, content, error",
    [
        ("a.txt", " \n\n", "holds no prompt"),
        ("a.jsonl", "", "holds no prompt"),
        ("a.csv", "", "holds no prompt"),
        ("a.csv", "\ufeff\r\n\r\n", "holds no prompt"),
        ("a.tsv", "caption\tid\n", "holds no prompt"),
        ("a.parquet", "one", "only .txt, .jsonl"),
        ("a.jsonl", lines({"text": "fine"}) + "{broken", "line 2: not an object"),
        ("a.jsonl", lines({"title": "one"}), "line 1: not an object"),
        ("a.jsonl", lines({"caption": None}), "line 1: not an object"),
        ("a.jsonl", lines(["caption"]), "line 1: not an object"),
        ("a.jsonl", lines("caption"), "line 1: not an object"),
        ("a.jsonl", "\n" + lines({"caption": " "}), "line 2: the prompt is empty"),
        ("a.jsonl", lines({"text": 7}), "line 1: caption 7 is no text"),
        ("a.jsonl", lines({"title": "one", "url": "x"}), r"prompt or text: .*title.*url"),
        ("a.jsonl", lines([{"text": "an array, not lines"}]), "line 1: not an object"),
        ("a.jsonl", lines({"text": "one", "negative": ["x"]}), r"line 1: negative_prompt \['x'\] is no text"),
        ("a.jsonl", lines({"text": "one", "id": [1]}), r"line 1: id \[1\] is neither"),
        ("a.jsonl", lines({"text": "one"}, {"text": "half a pair: \ud800"}), "line 2: .*surrogates"),
        (
            "a.jsonl",
            lines({"text": "one", "id": 1}, {"text": "two", "id": "1"}),
            "'1' stands on 'one' and on 'two'",
        ),
        ("a.csv", "id,text\n1,one\n1,two\n", "'1' stands on 'one' and on 'two'"),
        ("a.csv", "text,negative\none,dark\none,\n", r"'one', 'dark', None\) and on \('one', '', None"),
        ("a.csv", "id,title,URL\n1,one,x\n", r"a.csv: no column .* among \['id', 'title', 'url'\]"),
        ("a.csv", "no,header\n", r"no column caption, prompt or text among \['no', 'header'\]"),
        ("a.csv", "index,Caption,Index\n0,one,964841345\n", "two columns are called 'index'"),
        ("a.csv", "id,text\n1,one\n2, \n", "a.csv, line 3: the prompt is empty"),
        ("a.csv", ";text\n0;one\n1;NaN\n", "a.csv, line 3: the prompt is empty"),
        ("a.csv", 'text,id\n"one\nand",1\n"",2\n', "a.csv, line 4: the prompt is empty"),
        ("a.csv", "text\na cat, sitting\n", "line 2: 2 fields under 1 columns"),
        ("a.csv", "text,id\na cat\nsitting,1\n", "line 2: 1 fields under 2 columns"),
        ("a.csv", 'text,id\none,1\n"two,2\nthree,3\n', "a.csv, line 4: unexpected end of data"),
        ("a.csv", "text,id\none,a/b\n", "a.csv, line 2: prompt id 'a/b' cannot name a file"),
        *(
            (f"a.{suffix}", "text\nL\u00f6we".encode("latin-1"), f"a.{suffix}' is no UTF-8")
            for suffix in SUFFIXES
        ),
        *((f"a.{suffix}", "text\none".encode("utf-16"), f"a.{suffix}' is no UTF-8") for suffix in SUFFIXES),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, name: str, content: str | bytes, error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        load_prompts(write(tmp_path / name, content))


@pytest.mark.parametrize("field", ["id", "index"])
@pytest.mark.parametrize("key", ["../x", "a/b", "a\\b", ".hidden", "", "a\0b"])
def test_an_id_that_could_leave_its_folder_is_refused(tmp_path: Path, field: str, key: str) -> None:
    """Ids name image files."""
    with pytest.raises(ValueError, match="cannot name a file"):
        load_prompts(write(tmp_path / "a.jsonl", lines({"text": "one", field: key})))


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        load_prompts(str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match="no exposures.parquet"):
        load_prompts(str(tmp_path))
    write(tmp_path / "config.yaml", "seed: 0")  # a run that has not finished
    with pytest.raises(FileNotFoundError, match="no exposures.parquet"):
        load_prompts(str(tmp_path))
