# ruff: noqa: E501  (a row a line)
"""Files of prompts."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.prompts import load_prompts
from tests.bad_inputs import Bad, Group
from tests.data.image_files import noise
from tests.data.prompts.files import lines

DEEP = "[" * 100_000  # for the parser of JSON
NESTED = "[" * 2000  # for the parser of YAML


def bad(what: str, name: str, content: str | bytes, line: str) -> Bad:
    return Bad(what, {name: content}, name, f"error: {line}")


def said(what: str, content: str, line: str) -> Bad:
    """Of a JSON line."""
    return bad(what, "a.jsonl", content, f"a.jsonl, line 1: {line}")


def parquet(**columns: list | pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, use_dictionary=False)
    return sink.getvalue().to_pybytes()


def damaged(column: str) -> bytes:
    """A table of images and captions; that column cannot be read."""
    content = parquet(image=[noise(n) for n in range(3)], text=["one", "two", "three"])
    group = pq.read_metadata(pa.BufferReader(content)).row_group(0)
    [start] = [c.data_page_offset for c in map(group.column, range(2)) if c.path_in_schema == column]
    return content[:start] + b"\xff" * 60 + content[start + 60 :]


def exposures(what: str, why: str, **columns: list[Any]) -> Bad:
    """Of a training run."""
    name = "run/exposures.parquet"
    return Bad(what, {name: parquet(**columns)}, "run", f"error: {name}{why}")


ID_NAMES = ["../x", "a/b", "a\\b", ".hidden", "", "a\0b", "half \ud800"]
WIDE = "text\none".encode("utf-16")
LATIN = "text\nL\u00f6we".encode("latin-1")
PROMPTS = Group("Files of prompts", "python -m infer predict --prompts {}", load_prompts, [
    Bad("a file that is not there", {}, "no.txt", "error: no prompt file 'no.txt'"),
    Bad("a prompt in place of a file", {}, f"'{'a red car ' * 30}'", "error: no prompt file 'a red car ..."),
    bad("blank lines", "a.txt", " \n\n", "'a.txt' holds no prompt"),
    bad("nothing", "a.jsonl", "", "'a.jsonl' holds no prompt"),
    bad("nothing", "a.csv", "", "'a.csv' holds no prompt"),
    bad("a byte order mark and blank lines", "a.csv", "\ufeff\r\n\r\n", "'a.csv' holds no prompt"),
    bad("a header alone", "a.tsv", "caption\tid\n", "'a.tsv' holds no prompt"),
    bad("a spreadsheet", "a.xlsx", "PK", "'a.xlsx': only .txt, .jsonl, ... are read"),
    *(bad("Latin-1", name, LATIN, f"'{name}' is no UTF-8 text: ...") for name in ("a.txt", "a.jsonl", "a.csv", "a.tsv")),
    *(bad("UTF-16", name, WIDE, f"'{name}' is no UTF-8 text: ...") for name in ("a.txt", "a.jsonl", "a.csv", "a.tsv")),
    bad("UTF-16 without its mark", "a.txt", "one\ntwo".encode("utf-16-le"),
        "'a.txt' is no UTF-8 text: it holds null characters, as UTF-16 does"),
    bad("a null character", "a.csv", "text\na\0b\n", "'a.csv' is no UTF-8 text: it holds null characters, ..."),
    # JSON lines
    bad("half a line", "a.jsonl", lines({"text": "fine"}) + "{broken",
        "a.jsonl, line 2: not an object with a caption, prompt or text: {broken"),
    said("other fields", lines({"title": "one", "url": "x"}), 'not an object with a caption, prompt or text: {"title": "one", "url": "x"}'),
    said("no caption", lines({"caption": None}), "not an object with ..."),
    said("an array", lines(["caption"]), "not an object with ..."),
    said("a text", lines("caption"), "not an object with ..."),
    said("an array of objects", lines([{"text": "an array, not lines"}]), "not an object with ..."),
    said("brackets without end", f'{{"text": {DEEP}', "not an object with ..."),
    said("an integer of 5,000 digits", f'{{"text": "one", "id": {"9" * 5000}}}', "not an object with ..."),
    bad("an empty caption", "a.jsonl", "\n" + lines({"caption": " "}), "a.jsonl, line 2: the prompt is empty"),
    said("a number", lines({"text": 7}), "caption 7 is no text"),
    said("a list of negative prompts", lines({"text": "one", "negative": ["x"]}), "negative_prompt ['x'] is no text"),
    said("a list of ids", lines({"text": "one", "id": [1]}), "id [1] is neither text nor number"),
    said("half a character", lines({"text": "half \ud800"}), r"caption 'half \ud800' holds half a character, which no file can"),
    said("half a character", lines({"text": "a", "negative_prompt": "\ud800"}), "negative_prompt ... holds half a character, ..."),
    said("half a character", lines({"text": "a", "alternative": "\ud800"}), "alternative_prompt ... holds half a character, ..."),
    *(said("an id that leaves its folder", lines({"text": "one", field: key}), f"prompt id {key!r} cannot name a file")
      for field in ("id", "index") for key in ID_NAMES),
    bad("two prompts of one id", "a.jsonl", lines({"text": "one", "id": 1}, {"text": "two", "id": "1"}),
        "'a.jsonl': id '1' has two prompts, 'one' and 'two'"),
    # tables
    bad("two prompts of one id", "a.csv", "id,text\n1,one\n1,two\n", "'a.csv': id '1' has two prompts, 'one' and 'two'"),
    bad("two negative prompts", "a.csv", "text,negative\none,dark\none,\n",
        "'a.csv': id ... has two prompts, ('one', 'dark', None) and ('one', '', None)"),
    bad("other columns", "a.csv", "id,title,URL\n1,one,x\n",
        "a.csv, header: no column caption, prompt or text among ['id', 'title', 'url']"),
    bad("a column twice", "a.csv", "index,Caption,Index\n0,one,964841345\n",
        "a.csv, header: two columns are called 'index': ['index', 'caption', 'index']"),
    bad("an empty cell", "a.csv", "id,text\n1,one\n2, \n", "a.csv, line 3: the prompt is empty"),
    bad("an empty cell after two lines in one", "a.csv", 'text,id\n"one\nand",1\n"",2\n', "a.csv, line 4: the prompt is empty"),
    bad("a comma without quotes", "a.csv", "text\na cat, sitting\n",
        "a.csv, line 2: 2 fields under 1 columns; a text with ',' or a newline in it needs quotes"),
    bad("a newline without quotes", "a.csv", "text,id\na cat\nsitting,1\n", "a.csv, line 2: 1 fields under 2 columns; ..."),
    bad("a quotation mark without its pair", "a.csv", 'text,id\none,1\n"two,2\nthree,3\n', "a.csv, line 4: unexpected end of data"),
    bad("an id that leaves its folder", "a.csv", "text,id\none,a/b\n", "a.csv, line 2: prompt id 'a/b' cannot name a file"),
    bad("one line of 200 kB", "a.csv", "x" * 200_000, "a.csv, field larger than field limit (131072)"),
    bad("a cell of 200 kB", "a.csv", f"text\n{'x' * 200_000}\n", "a.csv, line 2: field larger than field limit (131072)"),
    # COCO, parquet, training runs
    bad("half a file", "a.json", "{", "a.json: no captions of COCO: it needs annotations with an image_id and a caption each; ..."),
    bad("brackets without end", "a.json", DEEP, "a.json: no captions of COCO: ..."),
    bad("an id that is a list", "a.json", '{"annotations": [{"image_id": [1], "caption": "x"}]}', "a.json: no captions of COCO: ..."),
    bad("a caption that is a number", "a.json", '{"annotations": [{"image_id": 1, "caption": 7}]}', "a.json, line 1: caption 7 is no text"),
    bad("no parquet", "a.parquet", "one", "a.parquet is no whole parquet file: ..."),
    bad("damaged rows", "a.parquet", damaged("text"), "a.parquet is no whole parquet file: ..."),
    Bad("a run's exposures, cut", {"run/exposures.parquet": b"PAR1"}, "run",
        "error: run/exposures.parquet cannot be read (...): the same fit writes it again, if you delete it"),
    exposures("another's exposures", " has no column 'id', but ['a']: ...", a=[1]),
    exposures("an exposure without caption", " has a row whose caption is no text: ...", id=["a"], caption=[None], times_shown=[1]),
    exposures("an exposure whose id leaves the folder", ": prompt id '../a' cannot name a file", id=["../a"], caption=["x"], times_shown=[1]),
])  # fmt: skip
