"""Which files of a folder count, and what their rows are called."""

import json
import os
import sys
from pathlib import Path

import pytest

from data.captioned import load_captioned
from data.prompts.fingerprint import source_fingerprint
from data.sources.rows import NOT_READ, file_id, files_below, path_ids
from tests.data.image_files import captions_of, encoded, noise, write_folder, write_shard


def test_linked_folders_are_read(tmp_path: Path) -> None:
    """As data sets lie on a cluster: the links stand in for the folders."""
    for name in ("cat", "dog"):
        write_folder(tmp_path / "disk" / name, {f"{name}.png": noise(ord(name[0]))})
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(tmp_path / "disk" / name)
    assert captions_of(tmp_path / "data") == {n: (f"An image of {n}",) for n in ("cat", "dog")}


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """And what lies in the folder is not read again under the name of a link."""
    write_folder(tmp_path, {"b/1.png": encoded(), "b/c/2.png": encoded()})
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b/c/up").symlink_to(tmp_path)
    assert files_below(tmp_path) == [tmp_path / "b/1.png", tmp_path / "b/c/2.png"]


def test_a_link_that_leads_nowhere_is_an_unreadable_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one of git-annex or DVC, whose content was not fetched."""
    source = write_folder(tmp_path, {"a.png": encoded(), "a.txt": "a", "b.txt": "b"})
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    images = load_captioned(source)
    assert len(images) == 1 and images.skipped == {"unreadable images": 1}
    assert "'b': unreadable images" in caplog.text and source_fingerprint(source)


def test_hidden_folders_are_not_read(tmp_path: Path) -> None:
    """Below the root, which may be hidden itself."""
    files = {"cat/1.png": encoded(), "dog/2.png": encoded(), "cat/.ipynb_checkpoints/x.png": encoded()}
    source = write_folder(tmp_path / ".cache/data", files | {".git/y.png": encoded()})
    assert captions_of(source) == {"1": ("An image of cat",), "2": ("An image of dog",)}


@pytest.mark.parametrize("suffix, form", [("gif", "gif"), ("bmp", "bmp"), ("jfif", "jpeg"), ("AVIF", "avif")])
def test_every_format_that_is_read_is_found(tmp_path: Path, suffix: str, form: str) -> None:
    write_folder(tmp_path, {f"a.{suffix}": noise(0, form), "a.txt": "a"})
    assert captions_of(tmp_path) == {"a": ("a",)}


@pytest.mark.parametrize("folder", ["", "00000/"])
def test_captions_without_an_image_are_counted(tmp_path: Path, folder: str) -> None:
    files = {
        f"{folder}a.png": encoded(), f"{folder}a.txt": "a", f"{folder}b.txt": "b", f"{folder}c.tiff": "c",
    }  # fmt: skip
    images = load_captioned(write_folder(tmp_path, files))
    assert len(images) == 1 and images.skipped == {"captions without image": 1, NOT_READ: 1}


def test_one_name_in_two_formats(tmp_path: Path) -> None:
    """Both are read, each under an id of its own."""
    files = {"a.png": noise(0), "a.jpg": noise(1, "jpeg"), "a.txt": "a", "b.png": noise(2), "b.txt": "b"}
    assert captions_of(write_folder(tmp_path, files)) == {"a_jpg": ("a",), "a_png": ("a",), "b": ("b",)}


def test_ids_of_paths_never_meet() -> None:
    """Not even where joining the way gives what another is called."""
    paths = [
        Path(name) for name in ("a/b_c.png", "a_b/c.png", "x/b_c.png", "x/c.png", "a_b_c.png", "a_b_c.gif")
    ]
    ids = path_ids(paths, Path())
    assert list(ids) and ids.keys() == set(paths) and len(set(ids.values())) == len(paths)
    assert ids[Path("x/c.png")] == "x_c"


@pytest.mark.parametrize("kind", ["shards", "folder", "parquet"])
def test_sources_that_are_numbered_alike_have_prefixes(tmp_path: Path, kind: str) -> None:
    """The error says how."""
    sources = []
    for name in "ab":
        if kind == "shards":
            sources.append(str(write_shard(tmp_path / f"{name}.tar", "0")))
        elif kind == "folder":
            sources.append(write_folder(tmp_path / name, {"0.png": noise(ord(name)), "0.txt": name}))
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            sources.append(f"{tmp_path / name}.parquet")
            pq.write_table(pa.table({"png": [noise(0)], "text": ["a"], "id": ["0"]}), sources[-1])
    with pytest.raises(ValueError, match=r"1 ids are repeated .*'0'; .*/b.*\?prefix=b_'"):
        load_captioned(*sources)
    images = load_captioned(sources[0], f"{sources[1]}?prefix=b_")
    assert [sample.id for sample in images.samples] == ["0", "b_0"]


def test_a_prefix_stands_beside_other_options(tmp_path: Path) -> None:
    """And cannot lead out of a folder."""
    write_folder(tmp_path, {"a.png": encoded(), "b.json": json.dumps({"x/a.png": ["a"]})})
    assert captions_of(f"{tmp_path}?captions=b.json&prefix=../x_") == {"x_a": ("a",)}
    with pytest.raises(ValueError, match="no option 'color' here, it takes captions, prefix"):
        load_captioned(f"{tmp_path}?color=red&prefix=a")


def test_a_question_mark_in_a_folders_name_begins_no_options(tmp_path: Path) -> None:
    folder = tmp_path / "who?name=me"
    folder.mkdir()
    write_shard(folder / "0.tar", "a")
    assert captions_of(f"{folder}/*.tar?prefix=b_") == {"b_a": ("a a",)}


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of other systems have no such names")
def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff1")
    write_folder(tmp_path, {f"{name}.png": encoded(), f"{name}.txt": "a"})
    assert captions_of(tmp_path) == {file_id(name): ("a",)} == {"\ufffd1": ("a",)}
    assert source_fingerprint(str(tmp_path))


def test_a_fingerprint_knows_the_names_of_folders(tmp_path: Path) -> None:
    """They are classes; where the whole folder lies does not matter, and links are followed."""
    for name in ("one/cat", "two/dog", "three/cat"):
        write_folder(tmp_path / name, {"1.png": encoded()})
    first, second, third = (source_fingerprint(str(tmp_path / name)) for name in ("one", "two", "three"))
    assert first == third != second
    (tmp_path / "one/bird").symlink_to(tmp_path / "two/dog")
    assert source_fingerprint(str(tmp_path / "one")) != first
