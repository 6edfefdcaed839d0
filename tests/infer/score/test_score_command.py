"""`python -m infer score` on runs that are there, and what a comparison says of itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from infer.__main__ import main
from infer.compare.measures import MeasureOptions
from infer.metrics.distances import diversity
from tests.infer.compare import training_run

pytestmark = pytest.mark.usefixtures("one_thread")
arguments = training_run.arguments  # a fixture


@pytest.fixture(scope="module")
def finished(arguments: list[str], one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison in which one of two prompts is memorized: one of its images is the training image."""
    out = tmp_path_factory.mktemp("comparisons") / "finished"
    assert main([*arguments, "--out", str(out)]) == 0
    shutil.copy(out / "training/s1.png", out / "none/images/s1-0.png")
    Image.effect_noise((16, 16), 90).convert("RGB").save(out / "none/images/s0-0.png")
    Image.effect_noise((16, 16), 90).convert("RGB").save(out / "none/images/s0-1.png")
    assert main([*arguments, "--out", str(out)]) == 0
    return out


@pytest.fixture
def asked(arguments: list[str], finished: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the runs none and stp, and the command that scores them."""
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    return folder, [
        "score", "--runs", f"{folder}/none,{folder}/stp", "--run", given["--run"], "--clip", given["--clip"],
        "--cache", given["--cache"], "--device", "cpu", "--out", str(tmp_path / "table.parquet"),
    ]  # fmt: skip


def test_it_gives_the_numbers_of_the_comparison(asked: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, command = asked
    for name in ("none", "stp"):
        rows = pd.read_parquet(folder / name / "samples.parquet").drop(
            columns=["similarity_own", "clip_score"]
        )
        rows.to_parquet(folder / name / "samples.parquet")
    assert main(command) == 0
    found = pd.read_parquet(tmp_path / "table.parquet")
    table = pd.read_parquet(folder / "comparison.parquet").iloc[:2]
    pd.testing.assert_frame_equal(found, table[list(found)], check_dtype=False)
    assert pd.read_parquet(folder / "stp/samples.parquet")["similarity_own"].notna().all()


def test_quality_is_of_the_scored_images(finished: Path, arguments: list[str]) -> None:
    """And the diversity is that of their CLIP embeddings."""
    from infer.metrics.clip_score import ClipScore

    table = pd.read_parquet(finished / "comparison.parquet").set_index("mitigation")
    assert table[["fid", "kid", "cmmd", "diversity_mean"]].notna().all().all()
    rows = pd.read_parquet(finished / "stp/samples.parquet")
    clip = ClipScore(arguments[arguments.index("--clip") + 1])
    images = [Image.open(finished / "stp" / path).convert("RGB") for path in rows["image"]]
    expected = diversity(clip.image_features(images), list(rows["prompt_id"]))
    assert table["diversity_mean"]["stp"] == pytest.approx(expected)


def test_the_memorized_prompts_have_a_table_of_their_own(finished: Path) -> None:
    about = json.loads((finished / "comparison.json").read_text())
    memorized = about["memorized"]
    notes = memorized.pop("notes")
    assert "regression to the mean" in notes[0] and "One prompt with scores" in notes[1]
    assert memorized == {
        "threshold": 0.5, "measure": "correlation of 32x32 RGB", "prompts": 1, "of": 2,
    }  # fmt: skip
    whole = pd.read_parquet(finished / "comparison.parquet").set_index("mitigation")
    part = pd.read_parquet(finished / "comparison_memorized.parquet").set_index("mitigation")
    assert (
        list(part.index) == list(whole.index) and set(part["prompts"]) == {1} and set(part["images"]) == {2}
    )
    for name in part.index:
        rows = pd.read_parquet(finished / name / "samples.parquet")
        own = rows["similarity_own"][rows["prompt_id"] == "s1"]
        assert part["similarity_own_mean"][name] == pytest.approx(own.mean())
    assert np.isnan(part["similarity_own_mean_low"]["stp"])  # one prompt


def test_it_says_what_so_few_images_cannot_show(finished: Path) -> None:
    about = json.loads((finished / "comparison.json").read_text())
    notes = " ".join(about["notes"])
    assert "2 prompts with scores" in notes and "is biased" in notes
    assert "against all 6 training images" in notes
    assert "clip" in about["features"] and "6 training images" in about["features"]


def test_prompts_without_a_training_image_are_counted(
    arguments: list[str], tmp_path: Path, finished: Path
) -> None:
    """A caption of a training image is its prompt whatever its id; another has no own similarity."""
    prompts = tmp_path / "prompts.jsonl"
    texts = {"s0": "red square", "x": "BLUE circle", "y": "something else"}
    prompts.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items()))
    options = ["--prompts", str(prompts), "--mitigations", "none", "--out", str(tmp_path / "out")]
    assert main([*arguments, *options, "--samples_per_prompt", "1"]) == 0
    rows = pd.read_parquet(tmp_path / "out/none/samples.parquet").set_index("prompt_id")
    assert rows["similarity_own"].isna().to_dict() == {"s0": False, "x": False, "y": True}
    assert rows["similarity_top"].notna().all()
    assert {path.stem for path in (tmp_path / "out/training").iterdir()} == {"s0", "x"}
    notes = json.loads((tmp_path / "out/comparison.json").read_text())["notes"]
    assert "1 of the prompts have no image of their own in the training set." in notes


@pytest.mark.parametrize("lost", ["missing", "damaged"])
def test_lost_images_are_named_counted_and_left_out(
    asked: tuple[Path, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """They are no zeros."""
    folder, command = asked
    image = folder / "stp/images/s1-1.png"
    image.unlink() if lost == "missing" else image.write_bytes(image.read_bytes()[:40])
    assert main(command) == 0
    assert str(image) in caplog.text
    rows = pd.read_parquet(folder / "stp/samples.parquet")
    assert list(rows["unreadable"]) == [False, False, False, True]
    table = pd.read_parquet(tmp_path / "table.parquet").set_index("mitigation")
    assert table["unreadable"].to_dict() == {"none": 0, "stp": 1}
    assert "Left out of the similarity, unreadable: 1 of 4 images of stp" in capsys.readouterr().out
    assert table["similarity_own_mean"]["stp"] == pytest.approx(rows["similarity_own"][:3].mean())


def test_all_equal_images_have_no_fid(
    asked: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, command = asked
    for path in (folder / "stp/images").iterdir():
        Image.new("RGB", (16, 16), "teal").save(path)
    assert main(command) == 0
    table = pd.read_parquet(tmp_path / "table.parquet").set_index("mitigation")
    assert np.isnan(table["fid"]["stp"]) and np.isfinite(table["fid"]["none"])
    assert "FID is undefined for a set of images that are all equal." in capsys.readouterr().out
    assert torch.tensor(table["diversity_mean"]["stp"]).abs() < 1e-6


def made_with(folder: Path, **settings) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | settings))


def edit(folder: Path, **columns) -> None:
    rows = pd.read_parquet(folder / "samples.parquet").assign(**columns)
    rows.to_parquet(folder / "samples.parquet")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda folder, _: edit(folder / "stp", seed=7),
            "none and stp are of different seeds: 's0', sample 0",
        ),
        (lambda folder, _: edit(folder / "stp", prompt="x"), "none and stp are of different prompts: 's0'"),
        (lambda folder, _: edit(folder / "stp", sample=[0, 1, 0, 2]), "1 images of none are not in stp"),
        (
            lambda folder, _: edit(folder / "stp", sample=[0, 0, 0, 1]),
            "1 images come twice, the first is 's0'",
        ),
        (lambda folder, _: (folder / "stp/samples.parquet").unlink(), "is no finished predict run"),
        (lambda folder, args: args.extend(["--runs", f"{folder}/none,{folder}/none"]), "named twice"),
        (lambda folder, _: made_with(folder / "stp", guidance_scale=3.0), "(guidance_scale: 7.5 -> 3.0)"),
        (lambda folder, _: made_with(folder / "stp", scheduler="dpm"), "were sampled differently"),
        (lambda _, args: args.extend(["--sscd_protocol", "dcr"]), "give --sscd too"),
        (lambda _, args: args.extend(["--out", "x.txt"]), "a .csv or .parquet file, not 'x.txt'"),
        (lambda _, args: args.extend(["--sscd_sha256", "0"]), "give --sscd too"),
        (lambda _, args: args.extend(["--device", "cuda:77"]), "device 'cuda:77' is not here"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    asked: tuple[Path, list[str]], capsys: pytest.CaptureFixture, change, message: str
) -> None:
    folder, command = asked
    change(folder, command)
    before = {path: path.read_bytes() for path in folder.glob("*/samples.parquet")}
    assert main(command) == 1
    assert {path: path.read_bytes() for path in folder.glob("*/samples.parquet")} == before
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_runs_of_one_mitigation_go_by_their_folders(asked: tuple[Path, list[str]], tmp_path: Path) -> None:
    """As of two timesteps of a class."""
    folder, command = asked
    shutil.copytree(folder / "stp", folder / "late")
    assert main([*command, "--runs", f"{folder}/none,{folder}/stp,{folder}/late"]) == 0
    assert list(pd.read_parquet(tmp_path / "table.parquet")["mitigation"]) == ["none", "stp", "late"]


def test_all_training_images_that_are_asked_for_are_searched(
    arguments: list[str], finished: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    """Those of the run itself are the six that it showed; its shards hold eight."""
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    for training, count in (([], 6), ([str(tiny_shards)], 8)):
        options = MeasureOptions(run=given["--run"], training=training, clip=given["--clip"])
        assert len(options.training_images()) == count


def test_an_id_of_another_set_is_not_taken_for_the_prompts_own_image(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Where the caption says which it is, it decides; where it does not, that is said."""
    prompts = tmp_path / "prompts.jsonl"
    texts = {"s0": "blue circle", "s1": "red square", "s2": "nothing of the kind"}
    prompts.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items()))
    options = ["--prompts", str(prompts), "--mitigations", "none", "--samples_per_prompt", "1"]
    assert main([*arguments, *options, "--out", str(tmp_path / "out")]) == 0
    for key, own in {"s0": "s1", "s1": "s0", "s2": "s2"}.items():
        shown = Image.open(tmp_path / f"out/training/{key}.png")
        given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        images = MeasureOptions(run=given["--run"], clip=given["--clip"]).training_images()
        expected = images[images.position[own]].rgb(16)
        assert np.array_equal(np.asarray(shown), np.asarray(expected))
    notes = json.loads((tmp_path / "out/comparison.json").read_text())["notes"]
    assert any(note.startswith("1 of the prompts are measured against") for note in notes)
