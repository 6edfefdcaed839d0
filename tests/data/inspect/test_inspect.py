"""`python -m data inspect`: what training data holds."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import data.__main__ as program
from data import cli
from data.captioned import Sample
from data.inspect.contact_sheet import contact_sheet, write_sheet
from data.inspect.inspection import Inspection
from tests.data.image_files import encoded, noise, write_folder, write_shard, write_tar


def inspected(*sources: str | Path, keep: int = 0) -> Inspection:
    inspection = Inspection(keep)
    for source in sources:
        inspection.read(str(source), lambda rows, name, total: rows)
    return inspection


@pytest.fixture
def command(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run `python -m data` with these arguments: the exit code, and all that it prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str) -> tuple[int, str]:
        try:
            code = cli.run("python -m data", program.__doc__, {"inspect": program.inspect}, [*args])
        except SystemExit as error:  # argparse's
            code = error.code
        return code, "".join(capsys.readouterr())

    return run


def shards(folder: Path) -> Path:
    """Two shards of img2dataset's, with its counts, and repeats in them."""
    folder.mkdir(exist_ok=True)
    large = encoded(Image.new("RGB", (40, 20), "blue"), "jpeg")
    files = {"0.jpg": large, "0.txt": b"one two three", "1.png": noise(1), "1.txt": b"x"}
    write_tar(folder / "00000.tar", files)
    write_tar(folder / "00001.tar", {"2.png": noise(1), "2.txt": b"x", "3.png": b"none", "3.txt": b"x"})
    for number, failed in enumerate((1, 0)):
        stats = {"count": 2 + failed, "successes": 2, "failed_to_download": failed, "failed_to_resize": 0}
        stats["status_dict"] = {"success": 2} | ({"HTTP Error 404: Not Found": 1} if failed else {})
        (folder / f"0000{number}_stats.json").write_text(json.dumps(stats))
    return folder


def test_everything_is_counted(tmp_path: Path) -> None:
    inspection = inspected(shards(tmp_path))
    rows = dict(inspection.rows())
    assert inspection.layouts == [(str(tmp_path), "webdataset shards (2)", 3)]
    assert rows["usable images"] == "3"
    assert rows["formats"] == "PNG RGB: 2, JPEG RGB: 1"
    assert rows["width"].startswith("40 / 48 / 48 ") and rows["height"].startswith("20 / 48 / 48 ")
    assert rows["words per caption"].startswith("1 / 1.667 / 3 ")
    assert rows["characters per caption"].startswith("1 / 5 / 13 ")
    assert rows["same picture again"] == "1 in 1 groups; the largest, of 2: 1, 2"
    assert rows["nearly the same picture again"] == "none"
    assert rows["most shown picture in a pass"] == "'1', 2 times (66.67% of all), as 2 images under 1 caption"
    assert rows["same (first) caption again"] == "1 in 1 groups; the largest, of 2: 1, 2"
    assert inspection.skipped == {"unreadable images": 1}
    shard_counts = {"count": 5, "successes": 4, "failed_to_download": 1, "HTTP Error 404: Not Found": 1}
    assert inspection.shards == shard_counts


def test_the_bar_knows_its_end_from_the_shards_counts(tmp_path: Path) -> None:
    """And goes without where one has none, or nonsense."""
    totals = []
    shards(tmp_path)
    for content in (None, "{}", "[" * 100_000):
        if content:
            (tmp_path / "00001_stats.json").write_text(content)
        Inspection().read(str(tmp_path), lambda rows, name, total: totals.append(total) or rows)
    assert totals == [4, None, None]


def test_classes_are_counted(tmp_path: Path) -> None:
    """And what has none, of a source without any; where no source has them, nothing is said."""
    files = {"a_b/1.png": noise(0), "a_b/2.png": noise(1), "a_b/3.png": noise(2), "c/1.png": noise(3)}
    write_folder(tmp_path / "classes", files)
    shard = write_shard(tmp_path / "s.tar", "x")
    text = dict(inspected(tmp_path / "classes", shard).rows())
    assert text["classes"] == "2" and text["images per class"].startswith("1 / 2 / 3 ")
    assert text["without a class"] == "1"
    assert "without a class" not in dict(inspected(tmp_path / "classes").rows())
    assert "classes" not in dict(inspected(shard).rows())


def test_the_layout_says_how_many_captions_of_a_file_match(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", "xyz")
    write_folder(tmp_path, {"blip.json": json.dumps({"x": ["one", "two"], "z": "three", "w": "four"})})
    inspection = inspected(f"{shard}?captions={tmp_path / 'blip.json'}")
    assert [layout for _, layout, _ in inspection.layouts] == [
        "webdataset shards (1); captions of blip.json: 2 of 3 match"
    ]
    assert inspection.skipped == {"captions without image": 1}


def test_ids_that_training_would_refuse_are_listed(tmp_path: Path) -> None:
    """Of two sources too."""
    paths = [write_shard(tmp_path / name, "ab") for name in ("a.tar", "b.tar")]
    text = dict(inspected(*paths).rows())
    assert text["same id again: refused in training"] == "2 in 2 groups; the largest, of 2: a, a"
    assert len(inspected(*paths).layouts) == 2


def test_few_images_are_kept_from_all_over(tmp_path: Path) -> None:
    """The same ones each time, in the order of the data."""
    files = {f"{n:03d}.png": encoded() for n in range(200)} | {f"{n:03d}.txt": "a" for n in range(200)}
    write_folder(tmp_path, files)
    kept = [sample.id for sample in inspected(tmp_path, keep=20).samples()]
    assert len(set(kept)) == 20 and kept == sorted(kept)
    assert kept == [sample.id for sample in inspected(tmp_path, keep=20).samples()]
    assert min(kept) < "050" and max(kept) >= "150"


def test_the_sheet_shows_whole_images_and_captions(tmp_path: Path) -> None:
    """Of 50 the first 48, eight in a row."""
    wide = encoded(Image.new("RGB", (200, 100), "red"))
    samples = [Sample(f"s{n}", wide, "a long caption " * 20, ("a", "b")) for n in range(49)]
    write_sheet([samples[0], *samples], tmp_path / "new/sheet.png")
    sheet = Image.open(tmp_path / "new/sheet.png")
    one = contact_sheet(samples[:1])
    assert (sheet.width - 8, sheet.height - 8) == ((one.width - 8) * 8, (one.height - 8) * 6)
    tile = one.crop((8, 8, one.width, 8 + 176))
    red = [tile.getpixel((x, 88)) == (255, 0, 0) for x in range(176)]
    assert all(red) and tile.getpixel((88, 30)) == (255, 255, 255)
    below = one.crop((8, 8 + 176, one.width, one.height)).convert("L")
    assert below.getextrema()[0] < 60  # something is written there


def test_the_command(tmp_path: Path) -> None:
    """Markup in the data stays text."""
    source, sheet = shards(tmp_path / "data [bold]"), str(tmp_path / "sheet.png")
    args = [sys.executable, "-m", "data", "inspect", str(source), "--sheet", sheet]
    done = subprocess.run(args, capture_output=True, text=True, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    for text in ("data [bold]", "webdataset shards (2)", "unreadable images", "HTTP Error 404", "sheet.png"):
        assert text in done.stdout
    assert "skipped '3': unreadable images: cannot identify image file" in done.stderr
    assert Image.open(tmp_path / "sheet.png").width > 176


@pytest.mark.parametrize("args, code, text", [
    (["--help"], 0, "python -m data inspect"),
    (["inspect", "--help"], 0, "--sheet FILE.png"),
    (["show"], 2, "no command 'show'; there are inspect"),
    (["inspect", "nowhere"], 1, "error: data source 'nowhere' is neither"),
    (["inspect", "nowhere", "--sheet", "sheet.doc"], 2, "'sheet.doc' is no picture"),
])  # fmt: skip
def test_help_and_errors(command: Callable, args: list[str], code: int, text: str) -> None:
    done, printed = command(*args)
    assert done == code and text in printed


def test_data_without_a_usable_image_is_explained(command: Callable, tmp_path: Path) -> None:
    """Then the command fails."""
    source = write_folder(tmp_path, {"a.png": b"none", "a.txt": "a", "b.png": encoded()})
    code, printed = command("inspect", source)
    assert code == 1 and "error: no captioned image in" in printed
    assert "unreadable images" in printed and "without caption" in printed
