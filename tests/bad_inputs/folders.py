# ruff: noqa: E501  (a row a line)
"""Folders, metadata, captions files and tables of training data."""

import json
from pathlib import Path

import pyarrow as pa

from tests.bad_inputs import Bad, Files, Group
from tests.bad_inputs.images import IMAGES
from tests.bad_inputs.prompts import DEEP, damaged, parquet
from tests.data.image_files import noise, tar_of

ONE = {"a.png": noise(0)}
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TWO = ONE | {"b.png": noise(1), "b.txt": b"b"}


def metadata(what: str, name: str, content: str | bytes, why: str) -> Bad:
    return Bad(what, ONE | {name: content}, ".", f"error: {name} {why}")


def captions(what: str, content: str | bytes, why: str) -> Bad:
    """In one file for all images."""
    return Bad(what, ONE | {"c.json": content}, "'.?captions=c.json'", f"error: c.json{why}")


def table(**columns: list | pa.Array) -> Files:
    return {"a.parquet": parquet(**columns)}


def saved(folder: Path) -> None:
    """A data set whose rows are said to lie elsewhere."""
    state = {"_data_files": [{"filename": "../../secret.arrow"}], "_fingerprint": "x", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


FOLDERS = Group("Folders and tables of images", "python -m data inspect {}", IMAGES.read, [
    Bad("a folder that is not there", {}, "no/such", "error: data source 'no/such' is neither a folder nor a shard pattern (*.tar, *.tar.gz), nor ..."),
    Bad("no images", {"run/config.yaml": "a: 1"}, "run", "error: no captioned image in run"),
    Bad("an option of another layout", TWO, "'.?split=train'", "error: '.': no option 'split' here, it takes captions, prefix"),
    Bad("an option without value", TWO, "'.?captions='", "error: '.?captions=': the option 'captions' has no value"),
    metadata("lines cut", "metadata.jsonl", "{", "cannot be read: Expecting property name enclosed in double quotes: ..."),
    metadata("lines that are lists", "metadata.jsonl", "[1]", "cannot be read: line 1 is no object"),
    metadata("brackets without end", "metadata.jsonl", DEEP, "cannot be read: maximum recursion depth exceeded ..."),
    metadata("nothing", "metadata.csv", "", "needs 'file_name', and 'text' or 'caption'; it has []"),
    metadata("other columns", "metadata.csv", "name,text\na.png,a\n", "needs 'file_name', and 'text' or 'caption'; it has ['name', 'text']"),
    metadata("a column twice", "metadata.csv", "file_name,text,text\na.png,a,b\n", "cannot be read: two columns are called 'text'"),
    metadata("a comma without quotes", "metadata.csv", "file_name,text\na.png,a, b\n",
             "cannot be read: line 2 has more fields than the header: a text with a comma in it needs quotes"),
    metadata("a cell of 200 kB", "metadata.csv", f"file_name,text\na.png,{'x' * 200_000}", "cannot be read: field larger than field limit (131072)"),
    metadata("UTF-16", "metadata.csv", "file_name,text\na.png,a".encode("utf-16"), "cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: ..."),
    Bad("paths that leave the folder", TWO | {"metadata.csv": "file_name,text\n../s.png,a\n/etc/x.png,a\nb.png,b\n"}, ".",
        "skipped '../s.png': without image"),
    Bad("a caption with a null character", TWO | {"metadata.csv": "file_name,text\na.png,a\0b\nb.png,b\n"}, ".",
        "skipped 'a': captions that are not UTF-8: it holds null characters"),
    Bad("an image without caption", TWO, ".", "skipped 'a': without caption"),
    Bad("a caption without image", TWO | {"c.txt": "c"}, ".", ".: not used: 1 captions without image, such as ['c.txt']"),
    Bad("a caption in UTF-16 without its mark", TWO | {"a.txt": "a".encode("utf-16-le")}, ".", "skipped 'a': captions that are not UTF-8"),
    Bad("one folder, and no captions", {"images_large/1.png": noise(0)}, ".", "error: . has images in 'images_large' and no captions: ..."),
    Bad("two captions files", ONE | dict.fromkeys(("c.json", "d.json"), '{"a.png": "a"}'), ".",
        "error: . has 2 captions files, c.json, d.json: name one, as '.?captions=c.json'"),
    Bad("a captions file that is not there", ONE, "'.?captions=../../no.json'", "error: no captions file '../../no.json', here or in ."),
    Bad("a captions file that is not there", {"s.tar": tar_of(ONE)}, "'s.tar?captions=no.json'",
        "error: no captions file 'no.json', here: give its path"),
    captions("half a captions file", '{"a.png": ["a"],\n"b.png": ["b"', " is no JSON: ... line 2 column ..."),
    captions("brackets without end", DEEP, " is no JSON: maximum recursion depth exceeded ..."),
    captions("Latin-1", b'{"a.png": "\xe9"}', " is no JSON: 'utf-8' codec can't decode byte 0xe9 ..."),
    captions("something else", '{"epochs": 3}', " is no captions file: it must hold {path or key of an image: [captions]}"),
    captions("an empty object", "{}", " is no captions file: it must hold ..."),
    captions("a list", '[["a.png", "a"]]', " is no captions file: it must hold ..."),
    captions("captions of other images", '{"/fs/x.png": "a", "/fs/y.png": "b"}',
             ": none of its 2 paths, such as '/fs/x.png', ends like one of the 1 images in ."),
    Bad("captions of other keys", {"s.tar": tar_of(ONE), "c.json": '{"y": "a"}'}, "'s.tar?captions=c.json'",
        "error: c.json: none of its 1 keys, such as 'y', is the id of one of the 1 images, such as 'a'"),
    Bad("keys that become one", {"s.tar": tar_of(ONE), "c.json": '{"x/a": "a", "x_a": "b"}'}, "'s.tar?captions=c.json'",
        "error: c.json: 1 of its keys are the same as others, as file names"),
    Bad("no parquet", {"a.parquet": b"one"}, "a.parquet", "error: a.parquet is no whole parquet file: ..."),
    Bad("captions that cannot be read", {"a.parquet": damaged("text")}, "a.parquet", "error: a.parquet is no whole parquet file: ..."),
    Bad("images that cannot be read", {"a.parquet": damaged("image")}, "a.parquet", "skipped 'a_0000000': unreadable images: ..."),
    Bad("two columns of images", table(before=[noise(0)], after=[noise(1)], text=["a"]), "a.parquet",
        "error: a.parquet: which column is the image? Say it as 'a.parquet?image=COLUMN'; it has ['before', 'after', 'text']"),
    Bad("no captions", table(image=[noise(0)], note=["a"]), "a.parquet", "error: a.parquet: which column is the caption? ..."),
    Bad("a column that is not there", table(image=[noise(0)], text=["a"]), "'a.parquet?image=x'",
        "error: a.parquet has no column 'x': it has ['image', 'text']"),
    Bad("captions that are numbers", table(image=[noise(0)], text=[1.5]), "a.parquet", "skipped 'a_0000000': captions that are no text"),
    Bad("a path in place of an image", table(image=pa.array([{"path": "/etc/passwd"}], PICTURE), text=["a"]), "a.parquet",
        "skipped 'a_0000000': without image"),
    Bad("a saved data set whose rows lie elsewhere", saved, ".",
        "error: . is no whole dataset of save_to_disk: '../../secret.arrow' of its state.json leads out of the folder"),
    Bad("a data set of the Hub that leaves its folder", {}, "hf:../owner", "error: 'hf:../owner': a dataset of the Hub is hf:owner/name or hf:owner/name:split"),
])  # fmt: skip
