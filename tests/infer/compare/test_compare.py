"""`python -m infer compare` in miniature: table, page, and what a rerun does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from infer.__main__ import main
from infer.compare.measures import MeasureOptions
from tests.conftest import CAPTIONS
from tests.data.image_files import noise, write_folder
from tests.infer.report.folders import Page
from tests.pixels import local_correlation

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / name / "samples.parquet")


def table_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "comparison.parquet").set_index("mitigation")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_table_has_a_row_per_mitigation_and_the_base_model(finished: Path) -> None:
    table = table_of(finished)
    assert list(table.index) == ["none", "stp", "dtp", "base_model"]
    columns = ["similarity_own_mean", "similarity_own_std", "similarity_own_p95", "share_above_05",
               "similarity_top_mean", "similarity_top_p95", "clip_score_mean"]  # fmt: skip
    intervals = [name + end for name in columns for end in ("_low", "_high", "_delta")]
    assert {*columns, *intervals, "fid", "nfe_mean", "seconds_per_image"} <= set(table)
    assert list(table["nfe_mean"]) == [16, 12, 16, 16] and set(table["images"]) == {4}


def test_its_numbers_are_those_of_the_images(finished: Path) -> None:
    """Correlations with the training images that the run showed, by numpy."""

    table = table_of(finished)
    for name in table.index:
        images = rows(finished, name)
        for row in images.itertuples():
            paths = finished / name / row.image, finished / f"training/{row.prompt_id}.png"
            assert row.similarity_own == pytest.approx(local_correlation(*map(Image.open, paths)), abs=1e-5)
        assert (images["similarity_top"] >= images["similarity_own"] - 1e-6).all()
        assert set(images["top_train_id"]) <= {f"s{n}" for n in range(6)}
        assert table["similarity_own_mean"][name] == pytest.approx(images["similarity_own"].mean())
        assert table["clip_score_mean"][name] == pytest.approx(images["clip_score"].mean(), abs=1e-6)
    assert images["clip_score"].nunique() == 4


def test_every_mitigation_starts_from_the_same_noise(finished: Path) -> None:
    """Prompts and seeds are those of `none`; the images are not the same."""
    none = rows(finished, "none")
    assert list(none["prompt_id"]) == ["s0", "s0", "s1", "s1"] and list(none["prompt"][::2]) == CAPTIONS[:2]
    for name in ("stp", "dtp", "base_model"):
        assert list(rows(finished, name)["seed"]) == list(none["seed"])
        a, b = (pixels(finished / path / none["image"][0]) for path in ("none", name))
        assert not np.array_equal(a, b)
    assert set(rows(finished, "stp")["mitigation"]) == {"stp"}


def test_the_page_holds_the_numbers_of_the_table(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for column in ("similarity_own_mean", "similarity_top_p95", "clip_score_mean"):
        assert all(f"{value:.3f}" in page for value in table_of(finished)[column])
    assert "top matches are searched among 6 images" in page
    assert len(Page(finished / "report.html").strips) == 4  # prompts and samples


def test_it_records_what_the_scores_were_measured_by(finished: Path, options: dict[str, str]) -> None:
    """In the comparison and in each run."""
    for path in (finished / "comparison.json", finished / "stp/scores.json"):
        about = json.loads(path.read_text())
        assert about["clip"] == options["--clip"] and about["descriptor"] == "local correlation of 32x32 RGB"
    given = {"run": options["--run"], "clip": options["--clip"], "sscd": "disc_large", "sscd_protocol": "dcr"}
    assert (
        MeasureOptions(**given).measured_by()["descriptor"]
        == "local correlation of 32x32 RGB; SSCD disc_large, protocol dcr"
    )


def test_a_rerun_reuses_images_and_scores_anew(
    finished: Path, compare_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A training image in place of a generated one counts as the copy it is; a missing image is generated."""
    out = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.copy(out / "training/s1.png", out / "none/images/s1-0.png")
    (out / "stp/images/s0-1.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/images/*.png")}
    assert main([*compare_args, "--mitigations=stp,none", "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(rows(out, "stp")["image"]) == list(rows(finished, "stp")["image"])
    assert np.allclose(rows(out, "stp")["similarity_own"], rows(finished, "stp")["similarity_own"], atol=0.02)
    row, table = rows(out, "none").iloc[2], table_of(out)
    assert row[["similarity_own", "similarity_top"]].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert row["top_train_id"] == "s1" and list(table.index) == ["stp", "none", "base_model"]
    share = (rows(out, "none")["similarity_own"] > 0.5).mean()
    assert table["share_above_05"]["none"] == share >= 0.25
    shown = capsys.readouterr().out
    assert "base_model" in shown and f"{table['similarity_own_mean']['none']:.3f}" in shown
    assert main(["report", str(out)]) == 0


def test_whose_training_image_is_whose(
    compare_args: list[str], options: dict[str, str], tmp_path: Path
) -> None:
    """A caption decides, whatever the ids; else the id, which is said; a prompt may have no image of its own.

    The ids s0 and S0 would share a file where case is ignored. A mitigation in a file has the file's name.
    """
    prompts, own = tmp_path / "prompts.jsonl", {"s0": "s1", "S0": "s1", "s1": "s0", "s2": "s2"}
    texts = {"s0": "blue circle", "S0": "BLUE circle", "s1": "red square", "s2": "nothing", "y": "something"}
    prompts.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items()))
    late = tmp_path / "late.yaml"
    late.write_text("class_path: StaticTransition\ninit_args: {timestep: 300, guidance_before: 1.0}\n")
    out = tmp_path / "out"
    changes = ["--mitigations", str(late), "--prompts", str(prompts), "--samples_per_prompt", "1"]
    assert main([*compare_args, *changes, "--out", str(out)]) == 0
    table, images = table_of(out), rows(out, "late").set_index("prompt_id")
    assert list(table.index) == ["late", "base_model"]
    assert table["transition_timestep_median"]["late"] == 251
    assert images["similarity_own"].isna().to_dict() == {key: key == "y" for key in texts}
    assert images["similarity_top"].notna().all()
    training = MeasureOptions(run=options["--run"], clip=options["--clip"]).training_images()
    stems = {key: Path(image).stem.removesuffix("-0") for key, image in images["image"].items()}
    assert {path.stem for path in (out / "training").iterdir()} == {stems[key] for key in own}
    for key, other in own.items():
        expected = training[training.position[other]].rgb(16)
        assert np.array_equal(pixels(out / f"training/{stems[key]}.png"), np.asarray(expected))
    assert all(row["training"] == (row["id"] != "y") for row in Page(out / "report.html").data["rows"])
    notes = json.loads((out / "comparison.json").read_text())["notes"]
    assert "1 of the prompts have no image of their own in the training set." in notes
    assert any(note.startswith("1 of the prompts are measured against") for note in notes)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--mitigations", "none,spt"],
         "no mitigation preset 'spt': did you mean stp"),
        (["--mitigations", "[]", "--base_pipeline", "none"], "there is nothing to compare"),
        (["--run", "/nowhere"], "'/nowhere' is no training run"),
        (["--clip", "/nowhere"], "no CLIP model folder '/nowhere'"),
        (["--sscd", "/nowhere.pt"], "no SSCD model '/nowhere.pt'"),
        (["--training", "/nowhere-{0..1}.tar"], "no file matches '/nowhere-0.tar'"),
        (["--training", "SHARD,SHARD"], "8 ids are repeated"),
        (["--model.pipeline", "/nowhere"], "no model folder '/nowhere'"),
        (["--model.guidance_scale", "0"], "guidance_before equals guidance_scale"),
        (["--mitigations", "none,og_two_pass", "--model.num_inference_steps", "4"], "at least 6 steps"),
        (["--nonsense", "1"], "nonsense"),
        (["--sweep", "stp.timestep"], "'stp.timestep': give it as PRESET.OPTION=VALUE,VALUE"),
        (["--sweep", "stp.timstep=400"], "timstep"),
        (["--sweep", "spt.timestep=400"], "no mitigation preset 'spt'"),
        (["--sweep", "stp.timestep=-400"], "-400 does not conform to restriction v>=0"),
        (["--sweep", "{stp: {timestep: []}}"], "nothing to sweep for 'stp'"),
        (["--sweep", "stp.timestep=999"], "never hold guidance back"),
        (["--published", "{spt: {fid: 3}}"], "published figures of ['spt'], which are none of ['stp'"),
        (["--published", "{none: {fdi: 3}}"], "published: no column 'fdi'; there are similarity_own_mean"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error_before_anything_is_generated(
    compare_args: list[str], tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    change: list[str], message: str,
) -> None:  # fmt: skip
    change = [text.replace("SHARD", str(tiny_shards)) for text in change]
    code = main([*compare_args, "--mitigations", "stp", *change, "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert code in (1, 2) and message in error and "Traceback" not in error
    assert not list(tmp_path.glob("*/images"))


def test_what_the_training_images_sources_leave_aside_is_named_once(
    tmp_path: Path, tiny_clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And not by each check before they are loaded."""
    source = write_folder(tmp_path, {"a.png": noise(0), "a.txt": "a", "b.tiff": b"", "c.zip": b"PK"})
    options = MeasureOptions(training=[source], clip=str(tiny_clip))
    options.check_ids()
    assert len(options.training_images()) == 1
    assert (
        caplog.text.count("not used: 1 images in a format") == caplog.text.count("not used: 1 archives") == 1
    )
