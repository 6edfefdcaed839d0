"""Parts of a predict run put together, by their closed form: rows in the order of the requests."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from data.prompts import Prompt
from data.prompts.store import PromptStore
from infer.denoising.requests import Request, Requests
from infer.predict import merge as merging
from infer.predict import run_folder
from infer.predict.merge import merge
from infer.predict.parts import finished, wait_for, write_part, written

SAMPLES, STEPS = 2, 3
REQUESTS = Requests(PromptStore(Prompt(f"p{n}", f"text {n}") for n in range(30)), SAMPLES, 0)


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller than some parts, too."""
    monkeypatch.setattr(merging, "ROW_GROUP", 8)
    monkeypatch.setattr(run_folder, "ROW_GROUP", 5)


def make(folder: Path, requests: list[Request], version: int = 0, traces: bool = True) -> None:
    """What a batch writes; every seventh image fails."""
    samples = []
    for request in requests:
        path = folder / f"images/{request.prompt_id}-{request.sample}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
        samples.append({
            "prompt_id": request.prompt_id, "sample": request.sample, "prompt": request.prompt,
            "negative_prompt": None, "seed": request.seed, "version": version,
            "image": f"images/{path.name}", "failed_step": 2.0 if request.seed % 7 == 0 else None,
        })  # fmt: skip
    keys = [(r.prompt_id, r.sample, step, version) for r in requests for step in range(STEPS)]
    write_part(folder, samples, pd.DataFrame(keys, columns=["prompt_id", "sample", "step", "version"]))
    if not traces:
        for path in (folder / "parts").glob("*.traces.parquet"):
            path.unlink()


def make_all(folder: Path, ranks: int, batch_size: int, requests: list[Request]) -> None:
    """By so many ranks, in any order."""
    batches = [
        share[start : start + batch_size]
        for share in (requests[rank::ranks] for rank in range(ranks))
        for start in range(0, len(share), batch_size)
    ]
    for number in np.random.default_rng(ranks).permutation(len(batches)):
        make(folder, batches[number])


def assert_in_order(folder: Path, requests: list[Request], versions: list[int] | int = 0) -> None:
    samples, traces = (pd.read_parquet(folder / f"{name}.parquet") for name in ("samples", "traces"))
    versions = np.broadcast_to(versions, len(requests))
    assert samples["prompt_id"].tolist() == [request.prompt_id for request in requests]
    assert samples["sample"].tolist() == [request.sample for request in requests]
    assert samples["seed"].tolist() == [request.seed for request in requests]
    assert samples["failed_step"].isna().tolist() == [request.seed % 7 != 0 for request in requests]
    assert samples["version"].tolist() == versions.tolist()
    assert [*zip(traces["prompt_id"], traces["sample"], traces["step"], traces["version"], strict=True)] == [
        (r.prompt_id, r.sample, step, version)
        for r, version in zip(requests, versions, strict=True) for step in range(STEPS)
    ]  # fmt: skip
    assert not (folder / "parts").exists()


def test_ranks_and_batches_leave_the_same_file(tmp_path: Path) -> None:
    """Byte for byte, with a row group for as many images whatever the parts."""
    for ranks, size in ((1, 60), (3, 4), (8, 1)):
        folder = tmp_path / str(ranks)
        make_all(folder, ranks, size, [*REQUESTS])
        assert written(folder) == 60 and finished(folder, REQUESTS).all()
        assert merge(folder, REQUESTS) == 60
        assert_in_order(folder, [*REQUESTS])
    for name in ("samples.parquet", "traces.parquet"):
        assert parquet.read_metadata(tmp_path / "8" / name).num_row_groups == 8
        assert len({(tmp_path / ranks / name).read_bytes() for ranks in "138"}) == 1


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    """As far as the first came, in parts or merged."""
    whole = [*REQUESTS]
    for merged in (False, True):
        folder = tmp_path / str(merged)
        make_all(folder, 3, 4, whole[:31])
        if merged:
            assert merge(folder, REQUESTS) == 31
            assert_in_order(folder, whole[:31])
        shares = [finished(folder, REQUESTS, rank, 5) for rank in range(5)]
        ready = np.any(shares, 0)
        assert ready.tolist() == [True] * 31 + [False] * 29
        assert np.array_equal(ready, finished(folder, REQUESTS)) and np.sum(shares) == 31
        make_all(folder, 5, 2, [whole[number] for number in np.flatnonzero(~ready)])
        assert merge(folder, REQUESTS) == 60
        assert_in_order(folder, whole)


def test_an_image_that_was_made_again_has_the_new_rows(tmp_path: Path) -> None:
    """One that is gone or damaged has none, neither of its steps; nor has one of no request."""
    whole = [*REQUESTS]
    make_all(tmp_path, 2, 4, [*whole, Request("other", 0, "", 0), Request("p1", 2, "", 0)])
    merge(tmp_path, REQUESTS)
    for number in (3, 40):
        (tmp_path / f"images/{whole[number].prompt_id}-{whole[number].sample}.png").write_bytes(b"cut")
    assert np.flatnonzero(~finished(tmp_path, REQUESTS)).tolist() == [3, 40]
    make(tmp_path, [whole[3]], version=1)
    assert merge(tmp_path, REQUESTS) == 59
    assert_in_order(tmp_path, [*whole[:40], *whole[41:]], [int(n == 3) for n in range(59)])
    before = (tmp_path / "samples.parquet").stat().st_mtime_ns
    assert merge(tmp_path, REQUESTS) == 59 and (tmp_path / "samples.parquet").stat().st_mtime_ns == before


def test_a_merge_that_is_killed_is_done_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each file that it writes, and while it removes the parts."""
    whole = [*REQUESTS]
    make_all(tmp_path / "a", 2, 4, whole[:20])
    merge(tmp_path / "a", REQUESTS)
    make_all(tmp_path / "a", 3, 4, whole[20:])
    merge(shutil.copytree(tmp_path / "a", tmp_path / "b"), REQUESTS)
    for table in ("traces", "samples"):
        shutil.copy(tmp_path / f"b/{table}.parquet", tmp_path / "a")
        again = shutil.copytree(tmp_path / "a", tmp_path / f"after_{table}")
        merge(again, REQUESTS)
        assert_in_order(again, whole)
    for number, path in enumerate((tmp_path / "a/parts").iterdir()):
        if number % 2:
            path.unlink()
    merge(tmp_path / "a", REQUESTS)
    assert_in_order(tmp_path / "a", whole)
    for name in ("samples.parquet", "traces.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_traces_that_are_lost_stay_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = [*REQUESTS]
    make_all(tmp_path, 2, 4, whole[:20])
    merge(tmp_path, REQUESTS)
    (tmp_path / "traces.parquet").unlink()
    assert merge(tmp_path, REQUESTS) == 20 and "has lost its traces" in caplog.text
    make(tmp_path, whole[20:25])
    assert merge(tmp_path, REQUESTS) == 25
    assert len(pd.read_parquet(tmp_path / "traces.parquet")) == 5 * STEPS


def test_a_merge_holds_the_parts_of_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not all: 3 ranks with 4 images each have some 12 images in a row, of which 8 are a group."""
    held = []

    class Watched(merging.Cache):
        def __call__(self, pieces):
            tables = super().__call__(pieces)
            held.append(
                sum(table.num_rows for table in tables) // (STEPS if "step" in tables[0].column_names else 1)
            )
            return tables

    monkeypatch.setattr(merging, "Cache", Watched)
    make_all(tmp_path, 3, 4, [*REQUESTS])
    merge(tmp_path, REQUESTS)
    assert len(held) == 16 and max(held) <= 24


def test_parts_that_do_not_show_are_not_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk shows those of another machine late, or the folder is not shared at all."""
    make(tmp_path, [*REQUESTS][:4])
    wait_for(tmp_path, 4)
    monkeypatch.setattr("data.disk.LATE", 0)
    with pytest.raises(OSError, match="shows 4 of the 7 images that all processes wrote"):
        wait_for(tmp_path, 7)
