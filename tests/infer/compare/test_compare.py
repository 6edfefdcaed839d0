"""`python -m infer compare` in miniature, on a made training run: table, page, and what a rerun does."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from infer.__main__ import main
from infer.report.terminal import terminal_table
from tests.conftest import CAPTIONS
from tests.infer.compare import training_run
from tests.infer.report.folders import Page

pytestmark = pytest.mark.usefixtures("one_thread")
arguments = training_run.arguments  # a fixture


@pytest.fixture(scope="module")
def finished(arguments: list[str], one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison folder, for reading."""
    out = tmp_path_factory.mktemp("comparisons") / "finished"
    assert main([*arguments, "--out", str(out)]) == 0
    return out


def rows(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / name / "samples.parquet")


def test_the_table_has_a_row_per_mitigation_and_the_base_model(finished: Path) -> None:
    table = pd.read_parquet(finished / "comparison.parquet")
    assert list(table["mitigation"]) == ["none", "stp", "dtp", "base_model"]
    assert {
        "similarity_own_mean", "similarity_own_std", "similarity_own_p95", "similarity_top_mean",
        "similarity_top_p95", "share_above_05", "clip_score_mean", "fid", "nfe_mean",
        "seconds_per_image",
    } <= set(table)  # fmt: skip
    assert list(table["nfe_mean"]) == [16, 12, 16, 16]
    assert set(table["images"]) == {4}


def test_its_numbers_are_those_of_the_images(finished: Path) -> None:
    """Correlations with the training images that the run showed, by numpy."""

    def flat(path: Path) -> np.ndarray:
        return np.asarray(Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BOX)).ravel()

    table = pd.read_parquet(finished / "comparison.parquet").set_index("mitigation")
    for name in table.index:
        made = rows(finished, name)
        for row in made.itertuples():
            pair = flat(finished / name / row.image), flat(finished / f"training/{row.prompt_id}.png")
            assert row.similarity_own == pytest.approx(np.corrcoef(*pair)[0, 1], abs=1e-5)
        assert (made["similarity_top"] >= made["similarity_own"] - 1e-6).all()
        assert set(made["top_train_id"]) <= {f"s{n}" for n in range(6)}
        assert table["similarity_own_mean"][name] == pytest.approx(made["similarity_own"].mean())
        assert table["clip_score_mean"][name] == pytest.approx(made["clip_score"].mean(), abs=1e-6)
    assert made["clip_score"].nunique() == 4


def test_the_same_noise_meets_every_mitigation(finished: Path) -> None:
    """Prompts and seeds are those of `none`; the models are not the same."""
    none = rows(finished, "none")
    assert list(none["prompt_id"]) == ["s0", "s0", "s1", "s1"] and list(none["prompt"][::2]) == CAPTIONS[:2]
    for name in ("stp", "dtp", "base_model"):
        assert list(rows(finished, name)["seed"]) == list(none["seed"])
        a, b = (np.array(Image.open(finished / path / none["image"][0])) for path in ("none", name))
        assert not np.array_equal(a, b)
    assert set(rows(finished, "stp")["mitigation"]) == {"stp"}


def test_the_page_holds_the_numbers_of_the_table(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    table = pd.read_parquet(finished / "comparison.parquet")
    for column in ("similarity_own_mean", "similarity_top_p95", "clip_score_mean"):
        assert all(f"{value:.3f}" in page for value in table[column])
    assert "top matches are searched among 6 images" in page
    assert len(Page(finished / "report.html").strips) == 4  # prompts and samples


def test_a_rerun_reuses_images_and_scores_anew(
    finished: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A training image in place of a generated one is found, and counts as the copy it is."""
    out = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.copy(out / "training/s1.png", out / "none/images/s1-0.png")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/images/*.png")}
    assert main([*arguments, "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/images/*.png")} == before
    row = rows(out, "none").iloc[2]
    assert row[["similarity_own", "similarity_top"]].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert row["top_train_id"] == "s1"
    table = pd.read_parquet(out / "comparison.parquet").set_index("mitigation")
    assert table["share_above_05"]["none"] == (rows(out, "none")["similarity_own"] > 0.5).mean() >= 0.25
    shown = capsys.readouterr().out
    assert "base_model" in shown and f"{table['similarity_own_mean']['none']:.3f}" in shown
    assert main(["report", str(out)]) == 0


def test_fewer_mitigations_and_a_missing_image(finished: Path, arguments: list[str], tmp_path: Path) -> None:
    """The table has what was asked for; what is missing is made."""
    out = Path(shutil.copytree(finished, tmp_path / "copy"))
    (out / "stp/images/s0-1.png").unlink()
    assert main([*arguments, "--mitigations=stp,none", "--out", str(out)]) == 0
    table = pd.read_parquet(out / "comparison.parquet")
    assert list(table["mitigation"]) == ["stp", "none", "base_model"]
    assert list(rows(out, "stp")["image"]) == list(rows(finished, "stp")["image"])
    assert np.allclose(rows(out, "stp")["similarity_own"], rows(finished, "stp")["similarity_own"], atol=0.02)


def test_a_mitigation_of_ones_own_is_a_file(arguments: list[str], tmp_path: Path) -> None:
    """Its name in the table is the file's."""
    (tmp_path / "late.yaml").write_text(
        "class_path: StaticTransition\ninit_args: {timestep: 300, guidance_before: 1.0}\n"
    )
    assert (
        main([*arguments, "--mitigations", str(tmp_path / "late.yaml"), "--out", str(tmp_path / "out")]) == 0
    )
    table = pd.read_parquet(tmp_path / "out/comparison.parquet").set_index("mitigation")
    assert list(table.index) == ["late", "base_model"]
    assert table["transition_timestep_median"]["late"] == 251


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ["--mitigations", "none,spt"],
            "no mitigation preset 'spt'; there are dtp, dtp_robust, none, og_dtp, og_stp, og_two_pass, stp",
        ),
        (["--mitigations", "[]", "--base_pipeline", "none"], "there is nothing to compare"),
        (["--run", "/nowhere"], "'/nowhere' is no training run"),
        (["--clip", "/nowhere"], "no CLIP model folder '/nowhere'"),
        (["--sscd", "/nowhere.pt"], "no SSCD model '/nowhere.pt'"),
        (["--training", "/nowhere-{0..1}.tar"], "no file matches '/nowhere-0.tar'"),
        (["--model.pipeline", "/nowhere"], "no model folder '/nowhere'"),
        (["--model.guidance_scale", "0"], "guidance_before equals guidance_scale"),
        (
            ["--mitigations", "none,og_two_pass", "--model.num_inference_steps", "4"],
            "at least 6 steps",
        ),
        (["--nonsense", "1"], "nonsense"),
    ],
)
def test_bad_input_is_one_clear_error_before_anything_is_made(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, change: list[str], message: str
) -> None:
    try:
        code = main([*arguments, "--mitigations", "stp", *change, "--out", str(tmp_path)])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code in (1, 2) and message in captured.err and "Traceback" not in captured.err
    assert not list(tmp_path.glob("*/images"))


def test_the_terminal_table_fits_and_cuts_no_name() -> None:
    """All columns at once, long names: 100 columns of text."""
    names = ["none", "somepalli_number", "somepalli_repeat", "base_model"]
    numbers = ["similarity_own_mean", "similarity_own_p95", "similarity_top_mean", "sscd_own_mean",
               "sscd_own_p95", "clip_score_mean", "fired_share"]  # fmt: skip
    table = pd.DataFrame({"mitigation": names} | {key: -0.123 for key in numbers})
    table = table.assign(nfe_mean=100.0, seconds_per_image=123.456, transition_timestep_median=501)
    with (console := Console(width=100)).capture() as captured:
        console.print(terminal_table(table))
    lines = captured.get().splitlines()
    assert all(any(line.lstrip().startswith(name) for line in lines) for name in names)
    assert "…" not in captured.get() and captured.get().count("-0.123") == 4 * 6


def test_long_names_take_nothing_from_the_numbers() -> None:
    """On 80 columns they are folded."""
    names = ["none", "detour_caption_orthogonal", "base_model"]
    numbers = ["similarity_own_mean", "similarity_own_p95", "similarity_top_mean", "clip_score_mean"]
    table = pd.DataFrame({"mitigation": names} | {key: -0.123 for key in numbers})
    table = table.assign(
        nfe_mean=100.0, seconds_per_image=123.456, fired_share=1.0, transition_timestep_median=501
    )
    with (console := Console(width=80)).capture() as captured:
        console.print(terminal_table(table))
    text = captured.get()
    assert "…" not in text and text.count("-0.123") == 3 * 4
    assert all(text.count(number) == 3 for number in ("100.0", "123.46", "100%", "501"))
    firsts = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert "detour_caption_orthogonal" in "".join(firsts)
