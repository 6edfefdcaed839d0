"""Folders for Kohya's scripts in a plan and in a fit: repeats, a reg folder, repeated pictures."""

from pathlib import Path

import pandas as pd
import pytest

from data.captioned import Sample
from tests.data.image_files import noise, write_folder
from tests.train import fits
from tests.train.fits import short
from tests.train.test_configs_train import rows
from train.__main__ import main
from train.dataset.contents import check_same, contents_of

world = fits.world  # a fixture


@pytest.fixture(scope="module")
def settings(world: Path) -> dict:
    """Two steps of 7: 3 + 3 + 1 draws of two subjects and as many of a regularization folder, 2 to 1."""
    files = {f"img/3_zxq woman/{name}.png": noise(number) for number, name in enumerate("ab")}
    files |= {"img/1_zxq man/c.png": noise(2), "reg/2_woman/r.png": noise(3), "reg/1_man/s.png": noise(4)}
    project = write_folder(world / "project", files)
    return {
        "data__sources": [project],
        "data__ordinary": [f"{project}/reg"],
        "data__exposure": {"ordinary_share": 0.5},
        "data__batch_size": 7,
        "trainer__max_steps": 2,
        "monitor__num_inference_steps": 1,
    }


def test_a_fit_shows_what_the_folders_say(world: Path, tmp_path: Path, settings: dict) -> None:
    """The class prompts without numbers; what is repeated counts as duplicated."""
    assert main(short(world, tmp_path / "run", **settings)) == 0
    table = pd.read_parquet(tmp_path / "run/exposures.parquet").set_index("id")
    captions = {"a": "zxq woman", "b": "zxq woman", "c": "zxq man", "r": "woman", "s": "man"}
    assert table["caption"].to_dict() == captions
    shown = table["times_shown"]
    assert shown[["a", "b", "c"]].tolist() == [3, 3, 1]
    assert shown[["r", "s"]].sum() == 7 and shown["r"] in (4, 5)  # two rounds of 2 and 1, and one more
    assert set(table.index[table["duplicated"]]) == {"a", "b"}


def test_a_plan_names_the_most_shown_picture(
    world: Path, tmp_path: Path, settings: dict, capsys: pytest.CaptureFixture
) -> None:
    """Also where it lies in another folder, under another caption; and what leaving repeats out leaves."""
    write_folder(world / "again", {"a2.png": noise(0), "a2.txt": "another caption"})
    given = settings | {
        "data__sources": [*settings["data__sources"], str(world / "again")],
        "data__exposure": {"ordinary_share": 0.2},
    }
    tables = []
    for leave_out in ("false", "true"):
        args = short(world, tmp_path / "run", **given, data__leave_out_repeats=leave_out)
        assert main(["plan", *args[1:]]) == 0
        tables.append(rows(capsys.readouterr().out))
    plain, without = tables
    # 14 draws, of which 3 + 3 + 1 + 1 and 2 ordinary ones are a pass
    assert plain["exposures of a duplicated image"] == "4.2" and plain["exposures of another image"] == "1.4"
    assert plain["most shown picture"] == "'a', 5.6 times (40.00% of all), as 2 images under 2 captions"
    assert without["images"].startswith("3 captioned images (skipped: ")
    assert "1 repeated pictures" in without["images"]
    assert without["exposures of a duplicated image"] == "4.7"  # 3 x 14 / 9
    assert "images of 'zxq woman' x 3" in plain["layout"]


def test_a_changed_number_of_repeats_is_a_change_of_the_data() -> None:
    """For a run that continues. Without any repeats the contents are those of former versions."""

    def contents(*repeats: int) -> dict:
        samples = [Sample(key, b"", "x", repeats=number) for key, number in zip("ab", repeats, strict=True)]
        return contents_of(samples, [["x"]] * 2)

    assert set(contents(1, 1)) == {"ids", "images", "captions"}
    check_same(contents(1, 3), contents(1, 3))
    for before, now in (((1, 3), (1, 4)), ((1, 1), (1, 4)), ((1, 4), (1, 1))):
        with pytest.raises(ValueError, match=r": 1 repeated another number of times \('b'\)"):
            check_same(contents(*before), contents(*now))
