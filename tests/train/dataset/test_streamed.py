"""`python -m train stream` as a user starts it: shards read as they come, and what was shown of them."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pandas as pd
import pytest
import torch

from data.prompts import load_prompts
from infer.basin.options import Basin
from infer.compare.measures import MeasureOptions
from tests.data.image_files import damaged, encoded, noise, write_shard, write_tar
from tests.train import fits
from tests.train.fits import assert_same_run, error_line, interrupt, run_process, short, spied, spy, stop
from train.__main__ import main
from train.dataset.streamed import StreamedData

world = fits.world  # a fixture
STEPS, BATCH, ACCUMULATED = 6, 4, 2
EPOCHS = 4  # begun, each of 15 images
CAPTIONS = {f"s{number:02}": f"image {number}" for number in range(15)}
FAULTS = {"unreadable images": 2 * EPOCHS, "without caption": EPOCHS}


@pytest.fixture(scope="module")
def shards(world: Path) -> Path:
    """Folder of five tars with three good images each. The first image of all fails when it is decoded."""
    folder = world / "streamed"
    folder.mkdir()
    for shard in range(5):
        files: dict[str, bytes] = {}
        if shard == 0:
            files |= {"a.jpg": damaged(), "a.txt": b"damaged"}
        for number in range(3 * shard, 3 * shard + 3):
            files |= {f"s{number:02}.png": noise(number), f"s{number:02}.txt": f"image {number}".encode()}
        if shard == 1:
            files |= {"x.png": b"not an image", "x.txt": b"unreadable"}
        if shard == 3:
            files |= {"y.png": encoded()}
        write_tar(folder / f"{shard}.tar", files)
    return folder


def stream(shards: Path, out: Path, **settings) -> list[str]:
    """Arguments of a short run over them."""
    chosen = {
        "data__sources": [str(shards / "{0..4}.tar")], "data__cache": None, "data__batch_size": BATCH,
        "data__workers": 0, "data__flip": "true", "model__lr": 1e-3, "model__caption_dropout": 0.25,
        "trainer__max_steps": STEPS, "trainer__accumulate_grad_batches": ACCUMULATED, "checkpoint_every": 2,
        "monitor__every_n_steps": 3, "ema__decay": 0.45,
    }  # fmt: skip
    return ["stream", *short(shards.parent, out, **(chosen | settings))[1:]]


def shown(batches: list[dict]) -> dict[str, int]:
    return dict(sorted(Counter(name for batch in batches for name in batch["id"]).items()))


def counted(run: Path) -> dict[str, int]:
    rows = pd.read_parquet(run / "exposures.parquet")
    assert list(rows) == ["id", "caption", "times_shown", "times_skipped"]
    assert rows["caption"].tolist() == [CAPTIONS[name] for name in rows["id"]]
    return dict(zip(rows["id"], rows["times_shown"], strict=True))


@pytest.fixture(scope="module")
def streamed(shards: Path, world: Path) -> Path:
    """Run folder, never interrupted; `world/stream_spied` is what the UNet saw."""
    out = world / "stream"
    assert main(stream(shards, out, trainer__callbacks=[spy(world / "stream_spied")])) == 0
    return out


def test_the_run_folder_is_complete(streamed: Path) -> None:
    """And holds nothing else: a stream caches nothing."""
    names = "checkpoints config.yaml exposures.parquet metrics.csv pipeline provenance.json samples"
    assert sorted(path.name for path in streamed.iterdir()) == [*names.split(), "skipped.json"]
    metrics = pd.read_csv(streamed / "metrics.csv")
    assert metrics["step"].tolist() == list(range(STEPS)) and metrics["loss"].between(0, 10).all()
    about = json.loads((streamed / "provenance.json").read_text())
    assert (about["streamed"], about["shards"], about["devices"]) == (True, 5, 1)


def test_the_run_can_be_measured(streamed: Path, shards: Path, tiny_clip: Path, tmp_path: Path) -> None:
    """Its prompts are all that it showed, and its images are those that were shown."""
    assert {prompt.id: prompt.text for prompt in load_prompts(str(streamed))} == CAPTIONS
    sources = [str(shards / "{0..4}.tar")]
    measured = MeasureOptions(run=str(streamed), clip=str(tiny_clip))
    assert measured.training == sources
    assert {sample.id for sample in measured.training_images().samples} == CAPTIONS.keys()  # "a" never was
    basin = Basin(run=str(streamed), out=str(tmp_path), device="cpu")
    assert (basin.training, basin.prompts) == (sources, str(streamed))


def test_the_fingerprint_is_the_shards_wherever_they_lie(shards: Path, tmp_path: Path) -> None:
    fingerprints = []
    shutil.copytree(shards, tmp_path / "moved")
    for folder, more in ((shards, b""), (tmp_path / "moved", b""), (tmp_path / "moved", b"more")):
        data = StreamedData([])
        data.paths = [str(folder / f"{shard}.tar") for shard in range(5)]
        Path(data.paths[4]).write_bytes(Path(data.paths[4]).read_bytes() + more)
        fingerprints.append(data.about()["data_fingerprint"])
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_exposures_are_what_was_seen(streamed: Path, world: Path) -> None:
    """Each image once an epoch, but for the one that cannot be decoded; the last epoch is cut."""
    batches = spied(world / "stream_spied")
    assert len(batches) == STEPS * ACCUMULATED
    assert counted(streamed) == shown(batches)
    assert shown(batches).keys() == CAPTIONS.keys() and min(shown(batches).values()) == EPOCHS - 1
    assert json.loads((streamed / "skipped.json").read_text()) == FAULTS


def test_the_monitor_shows_the_first_images_that_can_be_decoded(streamed: Path) -> None:
    rows = pd.read_parquet(streamed / "samples/similarity.parquet")
    assert rows["id"].tolist() == ["s00", "s01"] * 2 and rows["step"].tolist() == [3, 3, 6, 6]
    assert len(list((streamed / "samples").glob("step-*.png"))) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_stream_ends_as_if_it_was_not(
    workers: int, streamed: Path, shards: Path, world: Path, tmp_path: Path
) -> None:
    """Between two checkpoints: weights, losses, exposures and what was skipped are the same."""
    whole, out, settings = streamed, tmp_path / "cut", {"data__workers": workers}
    if workers:
        whole = tmp_path / "whole"
        assert main(stream(shards, whole, **settings)) == 0
    interrupt(stream(shards, out, **settings), 3)
    assert not (out / "exposures.parquet").exists()
    assert main(stream(shards, out, trainer__callbacks=[spy(tmp_path / "spied")], **settings)) == 0
    assert_same_run(whole, out)
    assert (out / "skipped.json").read_text() == (whole / "skipped.json").read_text()
    assert counted(whole) == counted(out) and sum(counted(out).values()) == STEPS * ACCUMULATED * BATCH
    after = shown(spied(tmp_path / "spied"))  # from the checkpoint on
    assert sum(after.values()) == (STEPS - 2) * ACCUMULATED * BATCH


@pytest.mark.parametrize("interrupted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_count_what_both_showed(shards: Path, tmp_path: Path, interrupted: bool) -> None:
    """Each reads its own shards."""
    out, seen = tmp_path / "run", tmp_path / "spied"
    settings = {
        "trainer__devices": 2,
        "trainer__strategy": "ddp_fork",  # as ddp, in half the time: one process imports for both
        "data__workers": 1,
        "data__shuffle": 4,
        "monitor__every_n_steps": 100,
    }
    for callbacks, code in (([spy(seen), stop(3)], 1), ([spy(seen)], 0))[not interrupted :]:
        errors = run_process(stream(shards, out, trainer__callbacks=callbacks, **settings), code)
        assert code == 0 or "stopped by the test" in errors
    ranks = [spied(seen, rank) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [STEPS * ACCUMULATED] * 2
    assert counted(out) == shown(ranks[0] + ranks[1])
    firsts = [{name for batch in batches[:1] for name in batch["id"]} for batches in ranks]
    assert not firsts[0] & firsts[1]
    for one, two in zip(*ranks, strict=True):
        assert torch.equal(one["weight"], two["weight"])
        assert not torch.equal(one["timesteps"], two["timesteps"])
    lost = sum((Counter(batch["skipped"]) for batch in ranks[0] + ranks[1]), Counter())
    assert json.loads((out / "skipped.json").read_text()) == dict(lost)


REFUSED = {
    "a folder of images": ({"data__sources": ["ordinary"]}, "no shards (.tar) in 'ordinary'"),
    "more readers than shards": (
        {"data__workers": 6},
        "6 processes read shards (devices x data.workers), and there are 5: lower data.workers",
    ),
    "no shards": ({"data__sources": ["no/such/{0..3}.tar"]}, "no file matches 'no/such/0.tar'"),
    "no steps": ({"trainer__max_steps": None}, "trainer.max_steps must be set"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_a_clear_line(
    case: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(shards.parent)
    settings, words = REFUSED[case]
    assert words in error_line(stream(shards, tmp_path / "run", **settings), capsys)


def test_shards_without_a_captioned_image_are_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In one line, though a worker sees it."""
    path = write_tar(tmp_path / "0.tar", {"y.png": encoded()})
    args = stream(shards, tmp_path / "run", data__sources=[str(path)], data__workers=1)
    assert error_line(args, capsys) == "error: no captioned image in 1 shards: 1 without caption"


def test_a_stream_resumes_in_its_order_only(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With other workers, accumulation, devices or shards images would be left out."""
    out = tmp_path / "run"
    interrupt(stream(shards, out), 3)
    assert "(workers: 0 -> 2)" in error_line(stream(shards, out, data__workers=2), capsys)
    line = error_line(stream(shards, out, trainer__accumulate_grad_batches=1), capsys)
    assert "only with the same devices" in line and "(accumulate_grad_batches: 2 -> 1)" in line

    one, two = (str(write_tar(tmp_path / f"{name}.tar", {f"{name}.txt": b"a"})) for name in "ab")
    data = StreamedData([])
    data.paths, data.trainer = [one], SimpleNamespace(world_size=2, accumulate_grad_batches=1)
    before = data.state_dict()
    data.load_state_dict(before)
    data.paths, data.trainer.world_size = [one, two], 3
    with pytest.raises(ValueError, match="world_size: 2 -> 3; shards: 1 -> 2"):
        data.load_state_dict(before)


@pytest.mark.parametrize("change", ["renamed", "another size"])
def test_a_stream_does_not_continue_on_other_shards(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: str
) -> None:
    """Of the same number: what changed is named."""
    out, folder = tmp_path / "run", shutil.copytree(shards, tmp_path / "shards")
    interrupt(stream(shards, out, data__sources=[str(folder)]), 3)
    last = max(folder.iterdir())
    if change == "renamed":
        last.rename(folder / "x.tar")
    else:
        last.write_bytes(last.read_bytes() + bytes(512))
    line = error_line(stream(shards, out, data__sources=[str(folder)]), capsys)
    assert "1 shards changed since the checkpoint was written" in line
    assert (f"{last.name} of" if change == "another size" else "is now x.tar of") in line


def test_shards_of_a_store_are_known_without_being_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or removed again to make room; one that is another in the store is named."""
    monkeypatch.setenv("ATTRACTION_BASIN_CACHE", str(tmp_path))
    store = fsspec.filesystem("memory")
    for name in "ab":
        store.put(str(write_shard(tmp_path / "x.tar", name)), f"/streamed/{name}.tar")
    data = StreamedData(["memory://streamed"], workers=0)
    data.trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1)
    data.paths = data.find(1)
    assert data.find(1) == StreamedData(["memory://streamed/*.tar"], workers=0).find(1)
    before = data.state_dict()
    assert [sample.id for sample, _ in data.watched(2)] == ["a", "b"]
    for path in data.paths:
        Path(path).unlink()
    data.load_state_dict(before)
    store.put(str(write_shard(tmp_path / "x.tar", "c")), "/streamed/b.tar")
    data.find(1)
    with pytest.raises(ValueError, match=r"1 shards changed .*\(b\.tar of"):
        data.load_state_dict(before)
