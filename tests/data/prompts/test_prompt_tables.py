"""Prompts from tables and JSON lines as they are published or written by hand: columns, ids, empty cells."""

from pathlib import Path

import pandas as pd
import pytest

from data.prompts import Prompt, load_prompts, text_id
from tests.data.prompts.files import lines, write

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


@pytest.mark.parametrize("name, content, expected", [
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
    ("nan.csv", "id,text\nnan,NaN\nNaN,nan\n", [Prompt("nan", "NaN"), Prompt("NaN", "nan")]),
    (
        "marks.tsv",
        'id\ttext\n1\t"G I G G L E" painted\n2\t"a" and "b"\n3\t"a ""cat"""\n4\t"open\n',
        [
            Prompt("1", '"G I G G L E" painted'), Prompt("2", '"a" and "b"'), Prompt("3", 'a "cat"'),
            Prompt("4", '"open'),
        ],
    ),
    ("rows.tsv", 'id\ttext\n1\t"begins\n2\tends"\n', [Prompt("1", '"begins'), Prompt("2", 'ends"')]),
    ("cells.tsv", 'text\tid\n"a\tcat"\t1\n"a\ndog"\t2\n', [Prompt("1", "a\tcat"), Prompt("2", "a\ndog")]),
    (
        "gap.csv",
        'index,id,text\n3," ",a cat\n,,a dog\n',
        [Prompt("3", "a cat"), Prompt(text_id("a dog"), "a dog")],
    ),
])  # fmt: skip
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


def test_the_row_number_of_a_table_is_no_id(tmp_path: Path) -> None:
    """One prompt comes by the same id from a table whose rows were numbered anew."""
    one = load_prompts(write(tmp_path / "a.csv", ",prompt\n0,one\n1,two\n"))
    other = load_prompts(write(tmp_path / "b.csv", ",prompt\n0,two\n"))
    assert other == one[1:]


def one_row(name: str, column: str, cell: str) -> str:
    """A table or JSON lines of one prompt, `a cat`, and one further column."""
    if name.endswith(".csv"):
        return f"text,{column}\na cat,{cell}\n"
    return f'{{"text": "a cat", "{column}": {cell}}}'


@pytest.mark.parametrize("column", ["negative_prompt", "negative", "Negative_Prompt"])
@pytest.mark.parametrize("name, cell, expected", [
    ("a.csv", "blurry", "blurry"), ("a.csv", '"blurry, dark"', "blurry, dark"), ("a.csv", "", ""),
    ("a.csv", "NaN", None), ("a.jsonl", '"blurry"', "blurry"), ("a.jsonl", '""', ""),
    ("a.jsonl", "null", None), ("a.jsonl", "NaN", None),
])  # fmt: skip
def test_a_negative_prompt_may_be_empty_or_missing(
    tmp_path: Path, column: str, name: str, cell: str, expected: str | None
) -> None:
    assert load_prompts(write(tmp_path / name, one_row(name, column, cell)))[0].negative == expected


@pytest.mark.parametrize("column", ["alternative_prompt", "alternative", "ALTERNATIVE"])
@pytest.mark.parametrize("name, cell, expected", [
    ("a.csv", "a dog", "a dog"), ("a.csv", " ", None), ("a.jsonl", '"a dog"', "a dog"),
    ("a.jsonl", '""', None), ("a.jsonl", "null", None), ("a.jsonl", "NaN", None),
])  # fmt: skip
def test_an_empty_alternative_is_none(
    tmp_path: Path, column: str, name: str, cell: str, expected: str | None
) -> None:
    prompts = load_prompts(write(tmp_path / name, one_row(name, column, cell)))
    assert prompts == [Prompt(text_id("a cat"), "a cat", None, expected)]


@pytest.mark.parametrize("name, content", [
    ("a.txt", "one\nzwei: Löwe\nthree"),
    ("a.jsonl", lines({"text": "one", "index": 1}, {"text": "zwei: Löwe"}) + '{"text": "three"}'),
    ("a.csv", ',text,index\n0,one,1\n1,"zwei: Löwe",\n2,three,'),
    ("a.tsv", "text\tid\none\t1\nzwei: Löwe\t\nthree\t"),
])  # fmt: skip
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
