"""`python -m infer score` on runs that are there, and what a comparison says of itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from infer.__main__ import main
from infer.compare.measures import MeasureOptions
from infer.metrics.clip_score import ClipScore
from infer.metrics.distances import diversity

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def copied(finished: Path, compare_args: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison in which one of two prompts is memorized: one of its images is the training image."""
    out = shutil.copytree(finished, tmp_path_factory.mktemp("comparisons") / "copied")
    shutil.copy(out / "training/s1.png", out / "none/images/s1-0.png")
    for sample in range(2):
        Image.effect_noise((16, 16), 90).convert("RGB").save(out / f"none/images/s0-{sample}.png")
    assert main([*compare_args, "--out", str(out)]) == 0
    return out


@pytest.fixture
def command(options: dict[str, str], copied: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the runs none and stp, and the command that scores them."""
    folder = shutil.copytree(copied, tmp_path / "copy")
    given = [text for name in ("--run", "--clip", "--cache") for text in (name, options[name])]
    runs = ["--runs", f"{folder}/none,{folder}/stp", "--out", str(tmp_path / "table.parquet")]
    return folder, ["score", *runs, *given, "--device", "cpu"]


def test_it_gives_the_numbers_of_the_comparison(command: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, args = command
    for name in ("none", "stp"):
        rows = pd.read_parquet(folder / name / "samples.parquet")
        rows.drop(columns=["similarity_own", "clip_score"]).to_parquet(folder / name / "samples.parquet")
        (folder / name / "scores.json").unlink()
    assert main(args) == 0
    table = pd.read_parquet(tmp_path / "table.parquet")
    expected = pd.read_parquet(folder / "comparison.parquet").iloc[:2]
    pd.testing.assert_frame_equal(table, expected[list(table)], check_dtype=False)
    scores = json.loads((folder / "stp/scores.json").read_text())
    assert scores["clip"] == args[args.index("--clip") + 1] and "correlation" in scores["descriptor"]
    assert pd.read_parquet(folder / "stp/samples.parquet")["similarity_own"].notna().all()


def test_quality_is_of_the_scored_images(copied: Path, options: dict[str, str]) -> None:
    """The diversity is that of their CLIP embeddings."""
    table = pd.read_parquet(copied / "comparison.parquet").set_index("mitigation")
    assert table[["fid", "kid", "cmmd", "diversity_mean"]].notna().all().all()
    rows = pd.read_parquet(copied / "stp/samples.parquet")
    images = [Image.open(copied / "stp" / path).convert("RGB") for path in rows["image"]]
    features = ClipScore(options["--clip"]).image_features(images)
    assert table["diversity_mean"]["stp"] == pytest.approx(diversity(features, list(rows["prompt_id"])))


def test_the_memorized_prompts_have_a_table_and_notes_of_their_own(copied: Path) -> None:
    about = json.loads((copied / "comparison.json").read_text())
    notes = about["memorized"].pop("notes")
    assert "regression to the mean" in notes[0] and "One prompt with scores" in notes[1]
    threshold = {"threshold": 0.5, "measure": "local correlation of 32x32 RGB"}
    assert about["memorized"] == threshold | {"prompts": 1, "of": 2}
    whole, part = (
        pd.read_parquet(copied / f"comparison{suffix}.parquet").set_index("mitigation")
        for suffix in ("", "_memorized")
    )
    assert list(part.index) == list(whole.index)
    assert set(part["prompts"]) == {1} and set(part["images"]) == {2}
    for name in part.index:
        rows = pd.read_parquet(copied / name / "samples.parquet")
        own = rows["similarity_own"][rows["prompt_id"] == "s1"]
        assert part["similarity_own_mean"][name] == pytest.approx(own.mean())
    assert np.isnan(part["similarity_own_mean_low"]["stp"])  # one prompt
    notes = " ".join(about["notes"])
    assert "2 prompts with scores" in notes and "is biased" in notes and "all 6 training images" in notes
    assert "clip" in about["features"] and "6 training images" in about["features"]


def test_lost_images_are_named_counted_and_left_out(
    command: tuple[Path, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    folder, args = command
    image = folder / "stp/images/s1-1.png"
    image.write_bytes(image.read_bytes()[:40])
    assert main(args) == 0
    assert str(image) in caplog.text
    rows = pd.read_parquet(folder / "stp/samples.parquet")
    assert list(rows["unreadable"]) == [False, False, False, True]
    table = pd.read_parquet(tmp_path / "table.parquet").set_index("mitigation")
    assert table["unreadable"].to_dict() == {"none": 0, "stp": 1}
    assert "Left out of the similarity, unreadable: 1 of 4 images of stp" in capsys.readouterr().out
    assert table["similarity_own_mean"]["stp"] == pytest.approx(rows["similarity_own"][:3].mean())


def change_config(folder: Path, **settings) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | settings))


def edit(folder: Path, **columns) -> None:
    rows = pd.read_parquet(folder / "samples.parquet").assign(**columns)
    rows.to_parquet(folder / "samples.parquet")


def test_runs_whose_images_all_failed_are_an_error(
    command: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of all runs; those of one run among others are counted."""
    folder, args = command
    edit(folder / "stp", failed_step=3.0)
    assert main(args) == 0
    table = pd.read_parquet(tmp_path / "table.parquet").set_index("mitigation")
    assert table["failed"].to_dict() == {"none": 0, "stp": 4} and np.isnan(table["clip_score_mean"]["stp"])
    edit(folder / "none", failed_step=3.0)
    assert main(args) == 1
    assert "no image of none, stp can be scored: each failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder, _: edit(folder / "stp", seed=7), "different seeds: 's0', sample 0"),
        (lambda folder, _: edit(folder / "stp", prompt="x"), "none and stp are of different prompts: 's0'"),
        (lambda folder, _: edit(folder / "stp", sample=[0, 1, 0, 2]), "2 images are in one of them only"),
        (
            lambda folder, _: edit(folder / "stp", sample=[0, 0, 0, 1]),
            "1 images come twice, the first is 's0'",
        ),
        (lambda folder, _: (folder / "stp/samples.parquet").unlink(), "is no finished predict run"),
        (
            lambda folder, _: change_config(folder / "stp", guidance_scale=3.0),
            "differently: guidance_scale: 7.5 -> 3.0",
        ),
        (lambda folder, _: change_config(folder / "stp", scheduler="dpm"), "were sampled differently"),
        (lambda _, args: args.extend(["--out", "x.txt"]), "a .csv or .parquet file, not 'x.txt'"),
        (lambda _, args: args.extend(["--device", "cuda:77"]), "device 'cuda:77' is not here"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    command: tuple[Path, list[str]], capsys: pytest.CaptureFixture, change, message: str
) -> None:
    folder, args = command
    change(folder, args)
    before = {path: path.read_bytes() for path in folder.glob("*/samples.parquet")}
    assert main(args) == 1
    assert {path: path.read_bytes() for path in folder.glob("*/samples.parquet")} == before
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_runs_of_one_mitigation_have_their_folders_beside_it(
    command: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Also where the folders have one name."""
    folder, args = command
    other = shutil.copytree(folder / "stp", folder / "late/stp")
    assert main([*args, "--runs", f"{folder}/none,{folder}/stp,{other}"]) == 0
    names = pd.read_parquet(tmp_path / "table.parquet")["mitigation"]
    assert list(names) == ["none", f"stp ({folder}/stp)", f"stp ({other})"]


def test_training_images_that_are_given_are_all_searched(options: dict[str, str], tiny_shards: Path) -> None:
    """Those of the run itself are the six that it showed; its shards hold eight."""
    for training, count in (([], 6), ([str(tiny_shards)], 8)):
        given = MeasureOptions(run=options["--run"], training=training, clip=options["--clip"])
        assert len(given.training_images()) == count
