"""Prompts from captioned images: folders, image folders with metadata, shards."""

import gzip
from pathlib import Path

import pytest
from PIL import Image

from data.prompts import Prompt, load_prompts
from tests.conftest import CAPTIONS
from tests.data.prompt_files import exposures, lines, write


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
    with pytest.raises(ValueError, match="no captioned image in .*: 1 without caption; "):
        load_prompts(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no file matches .*00001.tar"):
        load_prompts(str(tmp_path / "{00001..00002}.tar"))
