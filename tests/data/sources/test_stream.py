"""Streams of shards: what each reader is given, in which order, how a stream resumes, and what is skipped."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import data.sources.stream
from data.captioned import THREADS, load_captioned
from data.remote import Unreachable
from data.sources.stream import ShardStream, resumed, stream_paths
from tests.data.image_files import coloured, damaged, encoded, write_folder, write_shards, write_tar

BATCH = 4


def loaded(stream: ShardStream, workers: int = 0, **options: Any) -> Any:
    return iter(DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=dict, **options))


def taken(stream: ShardStream, count: int, workers: int = 0, **options: Any) -> list[dict[str, Any]]:
    batches = loaded(stream, workers, **options)
    try:
        return list(itertools.islice(batches, count))
    finally:
        if workers:  # an error keeps hold of the iterator, and torch then waits seconds for each worker
            batches._shutdown_workers()


def ids(batches: list[dict[str, Any]]) -> list[str]:
    return [name for batch in batches for name in batch["id"]]


def assert_same(batches: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected, strict=True):
        assert torch.equal(one["pixels"], other["pixels"])
        assert all(one[key] == other[key] for key in ("id", "caption", "skipped"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Eight of 6 samples each: 4 readers are given 3 whole batches in an epoch."""
    return write_shards(tmp_path_factory.mktemp("even"), [6] * 8)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Five uneven shards with one of each fault; the undecodable image lies in the first."""
    folder = tmp_path_factory.mktemp("faulty")
    paths = write_shards(folder, [7, 3, 8, 5])
    text, cut = b"a text", Path(paths[2])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    lost = {"x1.png": encoded(), "x2.png": b"not an image", "x2.txt": text, "x3.txt": text}
    good = {f"y{index}.png": coloured(index) for index in range(200, 206)}
    captions = {name.replace("png", "txt"): text for name in good}
    write_tar(folder / "99999.tar", lost | dict(sorted((good | captions).items())))
    return [*paths, str(folder / "99999.tar")]


def test_shards_are_named_by_patterns_and_folders(shards: list[str]) -> None:
    """As fit takes them."""
    folder = Path(shards[0]).parent
    assert stream_paths(str(folder)) == stream_paths(f"{folder}/{{00000..00007}}.tar") == sorted(shards)


def test_a_batch_holds_names_captions_and_pixels(shards: list[str]) -> None:
    batch = taken(ShardStream(shards, 5, BATCH, seed=0), 1)[0]
    assert set(batch) == {"id", "caption", "pixels", "skipped"} and batch["skipped"] == {}
    assert batch["pixels"].shape == (BATCH, 1, 3, 5, 5) and batch["pixels"].dtype == torch.uint8
    for name, caption, pixels in zip(batch["id"], batch["caption"], batch["pixels"][:, 0], strict=True):
        index = int(name[1:])
        assert caption == f"image {index}"
        assert torch.equal(
            pixels, torch.tensor([index, 0, 7], dtype=torch.uint8)[:, None, None].expand(3, 5, 5)
        )


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_two_processes_with_two_workers_each_give_a_sample_once_per_epoch(
    shards: list[str], start: str
) -> None:
    """Each epoch in another order; other seeds, other orders."""
    ranks = [
        loaded(ShardStream(shards, 4, BATCH, 1, rank, 2, shuffle=5), 2, multiprocessing_context=start)
        for rank in range(2)
    ]
    epochs = [[name for rank in ranks for name in ids(list(itertools.islice(rank, 6)))] for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == [f"s{index:05}" for index in range(48)]
    assert epochs[0] != epochs[1]
    assert ids(taken(ShardStream(shards, 4, BATCH, 2, 0, 2, shuffle=5), 6, 2)) != epochs[0][:24]


def test_uneven_shards_keep_nobody_waiting(tmp_path: Path) -> None:
    """Each process gives as many batches as are requested, each epoch whole before its next one."""
    paths = write_shards(tmp_path, [1, 9, 2, 6])
    given = [ids(taken(ShardStream(paths, 4, BATCH, 0, rank, 2), 20)) for rank in range(2)]
    assert [len(each) for each in given] == [80, 80]
    shares = [data.sources.stream.dealt(4, 0, 0, rank, 2) for rank in range(2)]
    sizes = [sum([1, 9, 2, 6][shard] for shard in share) for share in shares]
    firsts = [name for each, size in zip(given, sizes, strict=True) for name in each[:size]]
    assert sorted(firsts) == [f"s{index:05}" for index in range(18)]


def test_the_buffer_mixes_shards(shards: list[str]) -> None:
    """And with 1 samples come as they lie in their shards, whole shards in any order."""
    mixed, plain = (ids(taken(ShardStream(shards, 4, 6, 0, shuffle=shuffle), 8)) for shuffle in (1000, 1))
    assert sorted(mixed) == sorted(plain) == [f"s{index:05}" for index in range(48)]
    runs = [plain[start : start + 6] for start in range(0, 48, 6)]
    assert all(run == sorted(run) for run in runs) and runs != sorted(runs)
    assert all(
        len({int(name[1:]) // 6 for name in mixed[start : start + 6]}) > 2 for start in range(0, 48, 6)
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", [1, -1])
def test_the_same_arguments_give_the_same_batches(faulty: list[str], workers: int, order: int) -> None:
    """In whichever order the shards are named."""
    first, again = (
        taken(ShardStream(paths, 4, BATCH, 3, shuffle=6), 12, workers) for paths in (faulty, faulty[::order])
    )
    assert_same(again, first)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 2, 5, 13])
def test_a_stream_continues_where_it_was_left(faulty: list[str], workers: int, done: int) -> None:
    """Across epochs and faults, with what was skipped since, and no more than that."""
    whole = taken(ShardStream(faulty, 4, BATCH, 3, shuffle=6), 20, workers)
    rest = taken(ShardStream(faulty, 4, BATCH, 3, shuffle=6, done_batches=done), 20 - done, workers)
    assert_same(rest, whole[done:])


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("done", range(8))
def test_workers_continue_in_turn(workers: int, done: int) -> None:
    """What they give, dealt out in turn, are the batches from `done` on."""
    before = [resumed(worker, workers, done) for worker in range(workers)]
    turns = [[reader + workers * (given + turn) for reader, given in before] for turn in range(3)]
    assert sum(turns, []) == list(range(done, done + 3 * workers))


def test_pixels_are_those_of_the_readers_of_everything(tiny_shards: Path) -> None:
    images = load_captioned(str(tiny_shards))
    batch = taken(ShardStream([str(tiny_shards)], 8, 8, 0), 1)[0]
    expected = np.stack([images[images.position[name]].pixels(8) for name in batch["id"]])
    assert sorted(batch["id"]) == [f"s{index}" for index in range(8)]
    assert np.array_equal(batch["pixels"][:, 0].numpy(), expected)


def test_what_is_skipped_is_counted_as_readers_of_everything_count_it(faulty: list[str]) -> None:
    """Over one epoch, the last of whose batches is short by what the next epoch gives."""
    images = load_captioned(*faulty)
    assert set(images.skipped) == {"broken shards", "without caption", "unreadable images", "without image"}
    batches = taken(ShardStream(faulty, 4, len(images), 0), 3)
    for batch in batches:
        assert sorted(batch["id"]) == sorted(sample.id for sample in images.samples)
    # the buffer holds the whole epoch, so all is read before its first sample is given
    assert [batch["skipped"] for batch in batches] == [dict(images.skipped)] * 3


def test_a_worker_with_nothing_to_give_begins_the_next_epoch(tmp_path: Path) -> None:
    """One good shard among broken ones, two workers: either has it in some epochs."""
    paths = write_shards(tmp_path, [3, 1, 1, 1])
    for path in paths[1:]:
        Path(path).write_bytes(b"no tar at all")
    batches = taken(ShardStream(paths, 4, 3, 0), 6, 2)
    assert all(sorted(batch["id"]) == ["s00000", "s00001", "s00002"] for batch in batches)
    assert sum(batch["skipped"].get("broken shards", 0) for batch in batches) >= 6


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_of_which_nothing_can_be_used_are_an_error(tmp_path: Path, workers: int) -> None:
    paths = write_shards(tmp_path, [3, 3])
    Path(paths[0]).write_bytes(b"no tar at all")
    write_tar(Path(paths[1]), {"a.png": encoded(), "b.txt": b"b"})
    reasons = "1 broken shards, 1 without caption, 1 without image"
    with pytest.raises(ValueError, match=f"no captioned image in 2 shards: {reasons}$"):
        taken(ShardStream(paths, 4, BATCH, 0), 1, workers)
    write_tar(Path(paths[0]), {})
    write_tar(Path(paths[1]), {})
    with pytest.raises(ValueError, match="no captioned image in 2 shards: they are empty"):
        taken(ShardStream(paths, 4, BATCH, 0), 1, workers)


def test_a_shard_that_goes_away_ends_the_stream(tmp_path: Path) -> None:
    """It is no damage: the same images are there when the disk is back."""
    paths = write_shards(tmp_path, [2, 2])
    batches = loaded(ShardStream(paths, 4, 4, 0))
    assert next(batches)["skipped"] == {}
    Path(paths[1]).unlink()
    with pytest.raises(Unreachable, match="data is gone, or its disk does not answer .*00001.tar"):
        list(itertools.islice(batches, 2))


def test_nothing_but_the_buffer_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of samples alive: the buffer's, one batch's, and one that is being read; also on the way back."""
    alive, most = [0], [0]

    class Tracked(data.sources.stream.Sample):
        def __post_init__(self) -> None:
            super().__post_init__()
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            alive[0] -= 1

    monkeypatch.setattr("data.captioned.Sample", Tracked)
    paths = write_shards(tmp_path, [60, 60])
    for done in (0, 40):
        most[0] = 0
        taken(ShardStream(paths, 4, BATCH, 0, done_batches=done, shuffle=10), 40)
        assert 10 <= most[0] <= 10 + 2 * BATCH + 2 + 2 * THREADS, done
    assert alive[0] == 0


@pytest.mark.parametrize("source", ["images", "images/a.png", "hf:owner/name"])
def test_what_is_no_shards_is_for_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "images", {"a.png": encoded(), "a.txt": "a"})
    with pytest.raises(ValueError, match="no shards .* other data is for `python -m train fit`"):
        stream_paths(source)


def test_images_that_fail_only_when_decoded_are_counted(tmp_path: Path) -> None:
    """Batches stay whole, and a stream resumes alike."""
    paths = write_shards(tmp_path, [4, 4])
    files = {
        f"{key}.{end}": content for key in "abc" for end, content in (("jpg", damaged()), ("txt", b"bad"))
    }
    paths.append(str(write_tar(tmp_path / "00002.tar", files)))
    whole = taken(ShardStream(paths, 4, 3, 0), 8)
    assert sorted(ids(whole)) == sorted([f"s{index:05}" for index in range(8)] * 3)
    assert sum(batch["skipped"].get("unreadable images", 0) for batch in whole) == 3 * 3
    assert_same(taken(ShardStream(paths, 4, 3, 0, done_batches=3), 5), whole[3:])


def test_a_shard_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="a shard is named more than once"):
        ShardStream(["a.tar", "a.tar"], 4, 1, 0)
