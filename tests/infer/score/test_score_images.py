"""`python -m infer score --images`: images that another tool made."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.captioned import load_captioned
from infer.__main__ import main
from infer.score.images import prompt_of_name
from tests.conftest import CAPTIONS
from tests.infer.predict.runs import refused

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "stem, prompt",
    [
        ("00012-a red car_3", "a red car"),
        ("00001-1234567-a red car", "a red car"),
        ("a_red_car-0", "a red car"),
        ("a red car (2)", "a red car"),
        ("boeing 747", "boeing 747"),
        ("7 cats", "7 cats"),
        ("00012", ""),
    ],
)
def test_the_prompt_of_a_file_name(stem: str, prompt: str) -> None:
    assert prompt_of_name(stem) == prompt


@pytest.fixture
def images(tiny_shards: Path, tmp_path: Path) -> Path:
    """Copies of three training images: two by their captions, in a subfolder one by a number."""
    training, folder = load_captioned(str(tiny_shards)), tmp_path / "made"
    for number, name in enumerate((f"00001-{CAPTIONS[0]}_0", f"{CAPTIONS[1]} (1)", "more/0007")):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        training[number].rgb().save(path)
    return folder


def command(images: Path, training: Path, clip: Path, out: Path, *more: str) -> list[str]:
    return [
        "score", "--images", str(images), "--training", str(training), "--clip", str(clip), "--features",
        "null", "--device", "cpu", "--cache", str(out / "cache"), "--out", str(out), *more,
    ]  # fmt: skip


def test_images_are_scored_by_their_names_or_a_table(
    images: Path, tiny_shards: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By a name alone the third has no prompt and no fit to it; the table gives it one."""
    out = tmp_path / "out"
    assert main(command(images, tiny_shards, tiny_clip, out)) == 0
    rows = pd.read_parquet(out / "samples.parquet").set_index("prompt")
    assert set(rows.index) == {CAPTIONS[0], CAPTIONS[1], ""}
    assert rows["similarity_own"][CAPTIONS[:2]].tolist() == pytest.approx([1, 1])
    assert rows["top_train_id"][[*CAPTIONS[:2], ""]].tolist() == ["s0", "s1", "s2"]
    assert rows["similarity_own"].isna()[""] and rows["clip_score"].isna().tolist() == [False, False, True]
    page = (out / "images.html").read_text()
    assert page.count('src="data:image/webp;base64,') == 3 and "3 of 3 images" in page
    assert Image.open(out / "training/s2.png").size == (16, 16)
    table = tmp_path / "prompts.csv"
    table.write_text(f"file_name,prompt\nmore/0007.png,<b>{CAPTIONS[2]}</b>\n")
    assert main(command(images, tiny_shards, tiny_clip, out, "--prompts", str(table))) == 0
    rows = pd.read_parquet(out / "samples.parquet").set_index("top_train_id")
    assert rows["prompt"]["s2"] == f"<b>{CAPTIONS[2]}</b>" and rows["clip_score"].notna().all()
    assert "&lt;b&gt;" in (out / "images.html").read_text()
    assert f"2 images are not in {table}" in capsys.readouterr().out


def test_transparent_images_are_read_as_training_images_are(tiny_clip: Path, tmp_path: Path) -> None:
    """The training images themselves, whose colours differ most where nothing of them is seen."""
    images, random = tmp_path / "images", np.random.default_rng(0)
    images.mkdir()
    for number in range(2):
        pixels = random.integers(0, 255, (32, 32, 4), np.uint8)
        pixels[..., 3] = 255 * (pixels[..., 3] > 127)
        Image.fromarray(pixels).save(images / f"{number}.png")
    out = tmp_path / "out"
    assert main(command(images, images, tiny_clip, out)) == 0
    rows = pd.read_parquet(out / "samples.parquet")
    assert rows["similarity_top"].tolist() == pytest.approx([1, 1], abs=1e-4)
    assert rows["top_train_id"].tolist() == ["0", "1"]


def test_what_is_refused(
    images: Path, tiny_shards: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    args = command(images, tiny_shards, tiny_clip, tmp_path / "out")
    assert "give --runs, predict run folders, or --images" in refused([*args, "--runs", "x"], capsys)
    assert "no images in" in refused([*args, "--images", str(tmp_path / "none")], capsys)
    assert "a folder for the scores" in refused([*args, "--out", "table.csv"], capsys)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.yaml").write_text("mitigations: []")
    assert "holds a predict run" in refused(args, capsys)
