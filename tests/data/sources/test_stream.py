"""Shards that do not fit in memory: who is given what, in which order, and how a stream goes on."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import data.sources.stream
from data.captioned import load_captioned
from data.sources.stream import ShardStream, resumed, stream_paths
from tests.data import shards as streams
from tests.data.image_files import encoded, write_folder, write_tar
from tests.data.shards import BATCH, assert_same, coloured, ids, loaded, taken, write_shards

shards, faulty = streams.shards, streams.faulty  # fixtures


def test_shards_are_named_by_patterns_and_folders(shards: list[str]) -> None:
    """As fit takes them."""
    folder = Path(shards[0]).parent
    assert stream_paths(str(folder)) == stream_paths(f"{folder}/{{00000..00007}}.tar") == sorted(shards)


@pytest.mark.parametrize("source", ["images", "empty", "images/a.png", "images/*", "none", "hf:owner/name"])
def test_what_is_no_shards_is_for_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "images", {"a.png": encoded(), "a.txt": "a"})
    (tmp_path / "empty").mkdir()
    told = (
        rf"streams are of webdataset shards \(.tar\): {re.escape(repr(source))} .* use `python -m train fit`"
    )
    with pytest.raises(ValueError, match=told):
        stream_paths(source)


def test_a_batch_holds_names_all_captions_and_pixels(shards: list[str]) -> None:
    batch = taken(ShardStream(shards, 5, BATCH, seed=0), 1)[0]
    assert set(batch) == {"id", "caption", "pixels", "skipped"} and batch["skipped"] == {}
    assert batch["pixels"].shape == (BATCH, 3, 5, 5) and batch["pixels"].dtype == torch.uint8
    for name, captions, pixels in zip(batch["id"], batch["caption"], batch["pixels"], strict=True):
        index = int(name[1:])
        assert captions == (f"image {index}", f"number {index}")
        assert torch.equal(
            pixels, torch.tensor([index, 0, 7], dtype=torch.uint8)[:, None, None].expand(3, 5, 5)
        )


@pytest.mark.parametrize("start", ["fork", "spawn"])
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


def test_shards_are_dealt_anew_each_epoch(shards: list[str]) -> None:
    """So that a process sees more than its first share."""
    stream = ShardStream(shards, 4, 24, 1, rank=0, world_size=2)
    seen = [frozenset(name for name in batch["id"]) for batch in taken(stream, 4)]
    assert len(set(seen)) > 1 and len(frozenset.union(*seen)) > 24


def test_uneven_shards_keep_nobody_waiting(tmp_path: Path) -> None:
    """Each process gives as many batches as are asked of it, each epoch whole before its next one."""
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
def test_a_stream_goes_on_where_it_was_left(faulty: list[str], workers: int, done: int) -> None:
    """Across epochs and faults, with what was skipped since, and no more than that."""
    whole = taken(ShardStream(faulty, 4, BATCH, 3, shuffle=6), 20, workers)
    rest = taken(ShardStream(faulty, 4, BATCH, 3, shuffle=6, done_batches=done), 20 - done, workers)
    assert_same(rest, whole[done:])


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("done", range(8))
def test_workers_take_over_places_in_turn(workers: int, done: int) -> None:
    """What they give, dealt out in turn, are the batches from `done` on."""
    places = [resumed(worker, workers, done) for worker in range(workers)]
    turns = [[place + workers * (given + turn) for place, given in places] for turn in range(3)]
    assert sum(turns, []) == list(range(done, done + 3 * workers))


def test_nothing_is_decoded_on_the_way_back(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    decodings = []
    decode = data.sources.stream.pixels_of
    monkeypatch.setattr(
        data.sources.stream, "pixels_of", lambda *sample: decodings.append(1) or decode(*sample)
    )
    taken(ShardStream(shards, 4, BATCH, 0, done_batches=30), 2)
    assert len(decodings) == 2 * BATCH


def test_the_same_id_in_two_shards_are_two_samples(tmp_path: Path) -> None:
    paths = [str(write_tar(tmp_path / f"{n}.tar", {"a.png": coloured(n), "a.txt": b"a"})) for n in (1, 2)]
    batch = taken(ShardStream(paths, 1, 2, 0), 1)[0]
    assert batch["id"] == ["a", "a"]
    assert sorted(batch["pixels"][:, 0].flatten().tolist()) == [1, 2]


def test_pixels_are_those_of_the_readers_of_everything(tiny_shards: Path) -> None:
    images = load_captioned(str(tiny_shards))
    batch = taken(ShardStream([str(tiny_shards)], 8, 8, 0), 1)[0]
    expected = np.stack([images[images.position[name]].pixels(8) for name in batch["id"]])
    assert sorted(batch["id"]) == [f"s{index}" for index in range(8)]
    assert np.array_equal(batch["pixels"].numpy(), expected)
