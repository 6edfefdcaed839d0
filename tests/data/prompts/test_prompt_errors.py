"""What is wrong with a file of prompts, said in one line that names file and line."""

from pathlib import Path

import pytest

from data.prompts import load_prompts
from tests.data.prompts.files import lines, write

SUFFIXES = ("txt", "jsonl", "csv", "tsv")


@pytest.mark.parametrize("name, content, error", [
    ("a.txt", " \n\n", "holds no prompt"),
    ("a.jsonl", "", "holds no prompt"),
    ("a.csv", "", "holds no prompt"),
    ("a.csv", "\ufeff\r\n\r\n", "holds no prompt"),
    ("a.tsv", "caption\tid\n", "holds no prompt"),
    ("a.parquet", "one", "no whole parquet file"),
    ("a.xlsx", "one", "only .txt, .jsonl"),
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
        "'1' has two prompts, 'one' and 'two'",
    ),
    ("a.csv", "id,text\n1,one\n1,two\n", "'1' has two prompts, 'one' and 'two'"),
    ("a.csv", "text,negative\none,dark\none,\n", r"'one', 'dark', None\) and \('one', '', None"),
    ("a.csv", "id,title,URL\n1,one,x\n", r"a.csv, header: no column .* among \['id', 'title', 'url'\]"),
    ("a.csv", "no,header\n", r"no column caption, prompt or text among \['no', 'header'\]"),
    ("a.csv", "index,Caption,Index\n0,one,964841345\n", "two columns are called 'index'"),
    ("a.csv", "id,text\n1,one\n2, \n", "a.csv, line 3: the prompt is empty"),
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
    ("a.txt", "one\ntwo".encode("utf-16-le"), "a.txt' is no UTF-8 text: it holds null characters"),
])  # fmt: skip
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
