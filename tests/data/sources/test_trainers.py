"""Folders made for other trainers: Kohya's scripts, OneTrainer, and images of a predict run."""

from pathlib import Path

import pandas as pd
import pytest

from data.captioned import load_captioned
from data.sources.kohya import REGULARIZATION
from data.sources.runs import FAILED
from tests.data.image_files import captions_of, encoded, noise, write_folder

ELSEWHERE = "images in no folder with a number of repeats"


def project(folder: Path) -> str:
    """A project of Kohya's scripts, with the latents that they cache and samples that they draw."""
    files: dict[str, bytes | str] = {
        "img/10_zxq woman/a.png": noise(0), "img/10_zxq woman/a.npz": b"PK",
        "img/10_zxq woman/b.png": noise(1), "img/10_zxq woman/b.caption": "zxq woman, smiling",
        "img/3_zxq_man/c.jpg": noise(2, "jpeg"), "img/3_zxq_man/c_0512x0512_sd.npz": b"PK",
        "img/3_zxq_man/d.png": noise(3), "img/3_zxq_man/d.txt": "a man",
        "reg/1_woman/r.png": noise(4), "reg/1_woman/s.png": noise(5),
        "model/sample/x.png": noise(6), "log/run.json": "{}", "img/3_zxq_man/e.txt": "gone",
    }  # fmt: skip
    return write_folder(folder, files)


def repeated(source: str | Path) -> dict[str, tuple[str, int]]:
    """Caption and repeats of each image of a source."""
    return {each.id: (each.caption, each.repeats) for each in load_captioned(str(source)).samples}


def test_a_project_of_kohyas(tmp_path: Path) -> None:
    """The number is repeats and no part of a caption; a caption beside an image wins over the folder."""
    images = load_captioned(project(tmp_path))
    expected = {
        "a": ("zxq woman", 10), "b": ("zxq woman, smiling", 10), "c": ("zxq_man", 3), "d": ("a man", 3),
    }  # fmt: skip
    assert repeated(tmp_path) == expected == repeated(tmp_path / "img")
    aside = {"latents cached by a trainer (.npz)": 2, "captions without image": 1}
    assert images.skipped == {REGULARIZATION: 2, ELSEWHERE: 1} | aside
    assert images.layouts == ["Kohya's folders: 2 images of 'zxq woman' x 10, 2 images of 'zxq_man' x 3"]
    assert repeated(tmp_path / "reg") == {"r": ("woman", 1), "s": ("woman", 1)}


def test_other_captions_keep_the_repeats(tmp_path: Path) -> None:
    """Those of a file, and file names."""
    source = project(tmp_path)
    write_folder(tmp_path, {"c.json": '{"x/a.png": ["one", "two"], "x/d.png": "three"}'})
    assert repeated(f"{source}?captions=c.json") == {"a": ("one", 10), "d": ("three", 3)}
    assert repeated(f"{source}/img?caption=file_name")["c"] == ("c", 3)


def test_files_beside_the_folders(tmp_path: Path) -> None:
    """A stray image changes nothing; captioned ones are the data, as for a folder of images."""
    source = write_folder(tmp_path, {"2_cat/a.png": noise(0), "grid.png": noise(1)})
    assert repeated(source) == {"a": ("cat", 2)}
    write_folder(tmp_path, {"grid.txt": "a grid"})
    images = load_captioned(source)
    assert repeated(source) == {"grid": ("a grid", 1)} and images.skipped == {"images in subfolders": 1}


def test_one_of_kohyas_folders_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its own name is not read, which is said."""
    write_folder(tmp_path, {"10_cat/a.png": noise(0), "10_cat/a.txt": "a cat"})
    assert repeated(tmp_path / "10_cat") == {"a": ("a cat", 1)}
    assert "each image is shown once; to show them 10 times" in caplog.text


@pytest.mark.parametrize("names, message", [
    (["0_tench", "1_springer"], "'0_tench' in .* would be shown 0 times"),
    (["img/train/10_a"], "'10_a' in .* give the one above it, .*img/train$"),
])  # fmt: skip
def test_numbers_that_may_mean_something_else_are_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    files = {f"{name}/{number}.png": noise(number) for number, name in enumerate(names)}
    with pytest.raises(ValueError, match=message):
        load_captioned(write_folder(tmp_path, files))


def test_numbers_as_of_classes_are_named_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {f"{number}_{name}/{name}.png": noise(number) for number, name in enumerate("abc", 1)}
    assert repeated(write_folder(tmp_path, files))["c"] == ("c", 3)
    assert "READ AS REPEATS: images of '3_c' are shown 3 times" in caplog.text


@pytest.mark.parametrize("files, source, expected", [
    ({"1.txt": "a"}, "", {"1": "a"}),  # captions beside images
    ({"metadata.jsonl": '{"file_name": "1.png", "text": "a"}'}, "", {"1": "a"}),
    ({"c.json": '{"x/1.png": "a", "x/1-masklabel.png": "b"}'}, "?captions=c.json", {"1": "a"}),
    ({"x/1-masklabel.png": encoded(), "x/2.png": noise(2), "x/2.txt": "b", "1.txt": "a"}, "/x", {"2": "b"}),
])  # fmt: skip
def test_masks_of_onetrainer_are_no_images(tmp_path: Path, files: dict, source: str, expected: dict) -> None:
    """In none of the layouts; they are counted."""
    masks = {f"1-{kind}label.png": encoded() for kind in ("mask", "cond")}
    images = load_captioned(write_folder(tmp_path, {"1.png": noise(0)} | masks | files) + source)
    assert {sample.id: sample.caption for sample in images.samples} == expected
    assert images.skipped["masks of OneTrainer"] == (1 if source == "/x" else 2)
    assert "without caption" not in images.skipped


def test_file_names_as_captions(tmp_path: Path) -> None:
    """At any depth, instead of captions beside; without the number that a file manager adds."""
    names = ("zxq woman (1).png", "zxq woman (12).png", "sub/a_cat_on_a_mat.jpg")
    files = {name: noise(number) for number, name in enumerate(names)} | {"zxq woman (1).txt": "other"}
    source = write_folder(tmp_path, files)
    texts = [each.caption for each in load_captioned(f"{source}?caption=file_name").samples]
    assert sorted(texts) == ["a cat on a mat", "zxq woman", "zxq woman"]
    with pytest.raises(ValueError, match=r"images in files take no \?caption= but file_name"):
        load_captioned(f"{source}?caption=text")


def test_a_predict_run(tmp_path: Path) -> None:
    """Images with their prompts; not what failed or was refused, nor what lies elsewhere."""
    write_folder(tmp_path, {f"run/images/p-{n}.png": noise(n) for n in range(3)} | {"other.png": noise(9)})
    images = [*(f"images/p-{n}.png" for n in range(3)), "../other.png", "images/gone.png"]
    table = pd.DataFrame({"prompt_id": "p", "sample": range(5), "prompt": "a woman", "image": images})
    table["failed_step"] = [None, 3.0, None, None, None]
    table["refused"] = [False, False, True, False, False]
    table.to_parquet(tmp_path / "run/samples.parquet")
    read = load_captioned(f"{tmp_path}/run?prefix=prior_")
    assert {sample.id: sample.caption for sample in read.samples} == {"prior_p-0": "a woman"}
    assert read[0].image == noise(0) and read.skipped == {FAILED: 2, "without image": 2}


def test_a_folder_that_begins_with_a_year_is_a_class(tmp_path: Path) -> None:
    source = write_folder(tmp_path, {"2024_paris/1.png": noise(0), "2023_rome/2.png": noise(1)})
    assert captions_of(source) == {"1": ("An image of 2024 paris",), "2": ("An image of 2023 rome",)}
