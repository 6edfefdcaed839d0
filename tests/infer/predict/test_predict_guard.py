"""predict --guard: copies of a training image are made again or refused; recorded, counted, scored."""

from pathlib import Path
from shutil import copy

import numpy as np
import pandas as pd
import pytest

from infer.__main__ import main
from infer.index.attempts import attempt_seed
from infer.models.pipeline import load_pipeline
from tests.conftest import CAPTIONS
from tests.infer.predict.runs import assert_same_run, pixels, refused, rows_of, stock, summary_of, times

pytestmark = pytest.mark.usefixtures("one_thread")
NEAR = "0.9999"


@pytest.fixture(scope="module")
def world(
    arguments: list[str], one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path, Path]:
    """Arguments of a run of three prompts without guard; its folder; an index of its first image alone."""
    folder = tmp_path_factory.mktemp("world")
    given = [
        *arguments, "--samples_per_prompt", "1", "--mitigation", "none", "--model.num_inference_steps", "4",
        "--out", str(folder / "plain"),
    ]  # fmt: skip
    assert main(given) == 0
    (folder / "training").mkdir()
    copy(folder / "plain/images/s0-0.png", folder / "training/s0.png")
    (folder / "training/s0.txt").write_text(CAPTIONS[0])
    index = folder / "index.safetensors"
    built = ["index", "--training", str(folder / "training"), "--resolution", "16", "--cache", "null"]
    assert main([*built, "--out", str(index)]) == 0
    return given, folder, index


def guarded(world: tuple[list[str], Path, Path], out: Path, *options: str) -> list[str]:
    given, _, index = world
    return [*given, "--out", str(out), "--guard.index", str(index), "--guard.threshold", NEAR, *options]


def test_a_copy_is_made_again(world, tiny_pipeline: Path, tmp_path: Path, capsys) -> None:
    """From the seed that follows; the others are as without guard. Again, and in other batches: the same."""
    out, plain = tmp_path / "one", world[1] / "plain"
    assert main(guarded(world, out)) == 0
    words = "1 were too near to a training image and made again; 0 stayed so and are REFUSED"
    assert words in capsys.readouterr().out
    rows, before = rows_of(out), rows_of(plain)
    assert rows["attempts"].tolist() == [2, 1, 1] and rows["refused"].tolist() == [False] * 3
    assert rows["seed"].tolist() == before["seed"].tolist() and rows["nfe"].tolist() == [16, 8, 8]
    images, former = pixels(out), pixels(plain)
    assert all(np.array_equal(images[name], former[name]) for name in ("s1-0.png", "s2-0.png"))
    row = next(rows.itertuples())
    again = stock(load_pipeline(str(tiny_pipeline)), row._replace(seed=attempt_seed(row.seed, 2)))
    assert np.abs(images["s0-0.png"] - again).max() <= 1
    assert not np.array_equal(images["s0-0.png"], former["s0-0.png"])
    assert set(rows["mitigation"]) == {f"none, guarded (threshold={NEAR}, attempts=3)"}
    assert summary_of(out)["made_again"] == 1 and summary_of(out)["refused"] == 0
    assert summary_of(out)["attempts_mean"] == pytest.approx(4 / 3)
    assert len(pd.read_parquet(out / "traces.parquet")) == 3 * 4
    stamps = times(out)
    assert main(guarded(world, out)) == 0 and times(out) == stamps
    assert main(guarded(world, tmp_path / "two", "--batch_size", "1")) == 0
    assert_same_run(out, tmp_path / "two", tolerance=1)
    assert "attempts" not in before
    error = refused(guarded(world, out, "--guard.threshold", "0.7"), capsys)
    assert "holds a different run" in error and "guard.threshold: 0.9999 -> 0.7" in error


def test_what_stays_a_copy_is_refused_and_left_out_of_scores(
    world, tiny_clip: Path, tmp_path: Path, capsys, caplog
) -> None:
    out, table = tmp_path / "one", tmp_path / "table.csv"
    assert main(guarded(world, out, "--guard.attempts", "1")) == 0
    assert "s0, sample 0: refused after 1 attempts" in caplog.text and "training image 's0'" in caplog.text
    assert rows_of(out)["refused"].tolist() == [True, False, False] and summary_of(out)["refused"] == 1
    assert np.unique(pixels(out)["s0-0.png"]).tolist() == [128]
    runs = f"{world[1] / 'plain'},{out}"
    scoring = ["score", "--runs", runs, "--training", str(world[1] / "training"), "--clip", str(tiny_clip)]
    assert main([*scoring, "--out", str(table), "--cache", str(tmp_path), "--device", "cpu"]) == 0
    rows = rows_of(out)
    assert rows["clip_score"].isna().tolist() == [True, False, False]
    assert rows["similarity_top"].isna().tolist() == [True, False, False] and not rows["undefined"].any()
    plain, row = pd.read_csv(table).to_dict("records")
    assert (plain["refused"], row["refused"], row["attempts_mean"]) == (0, 1, 1)
    assert "refused by the guard: 1 of 3 images of" in capsys.readouterr().out


def test_a_stronger_rule_for_further_attempts(world, tmp_path: Path) -> None:
    """With its own schedule of scales, in the trace of what was made again."""
    out = tmp_path / "one"
    assert main(guarded(world, out, "--guard.stronger", "og_stp", "--guard.attempts", "2")) == 0
    traces = pd.read_parquet(out / "traces.parquet").groupby("prompt_id")["guidance_scale"].agg(list)
    assert traces["s0"] == [-2.0, 7.5, 7.5, 7.5] and traces["s1"] == [7.5] * 4
    assert rows_of(out)["transition_timestep"].notna().tolist() == [True, False, False]


def test_what_cannot_be_guarded(world, tmp_path: Path, capsys, caplog) -> None:
    """Before a model is loaded."""
    lost = ["--guard.index", str(tmp_path / "lost.safetensors")]
    assert "build one with: python -m infer index" in refused(guarded(world, tmp_path / "a", *lost), capsys)
    assert "lets all pass" in refused(guarded(world, tmp_path / "b", "--guard.threshold", "50"), capsys)
    assert main(guarded(world, tmp_path / "c", "--guard.stronger", "strongest")) == 1
    assert "no mitigation preset 'strongest'" in capsys.readouterr().err
    assert main([*world[0], "--guard.attempts", "5"]) == 0 and "--guard.* has no effect" in caplog.text
