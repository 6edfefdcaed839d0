"""Streams of shards in which something is wrong: counted, replaced, or one clear error."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import data.sources.stream
from data.captioned import load_captioned
from data.sources.stream import ShardStream
from tests.data import shards as streams
from tests.data.image_files import encoded, write_tar
from tests.data.shards import BATCH, assert_same, damaged, ids, loaded, taken, write_shards

shards, faulty = streams.shards, streams.faulty  # fixtures


def test_what_is_skipped_is_counted_as_readers_of_everything_count_it(faulty: list[str]) -> None:
    """Over one epoch, the last of whose batches is short by what the next epoch gives."""
    images = load_captioned(*faulty)
    assert set(images.skipped) == {"broken shards", "without caption", "unreadable images", "without image"}
    batches = taken(ShardStream(faulty, 4, len(images), 0), 3)
    for batch in batches:
        assert sorted(batch["id"]) == sorted(sample.id for sample in images.samples)
    # the buffer holds the whole epoch, so all is found before its first sample is given
    assert [batch["skipped"] for batch in batches] == [dict(images.skipped)] * 3


def test_workers_count_what_their_own_shares_lack(faulty: list[str]) -> None:
    """All of a share is found before its first sample is given, where the buffer holds it."""
    images = {path: load_captioned(path) for path in faulty}
    batches = taken(ShardStream(faulty, 4, 1, 0), 120, 2)
    for worker in range(2):
        given, expected = 0, Counter()
        for epoch in itertools.count():
            if given >= 60:
                break
            for shard in data.sources.stream.dealt(len(faulty), 0, epoch, worker, 2):
                given += len(images[faulty[shard]])
                expected += images[faulty[shard]].skipped
        found = sum((Counter(batch["skipped"]) for batch in batches[worker::2]), Counter())
        assert found == expected and found["without caption"] > 1


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_fail_late_are_counted_and_replaced(
    tmp_path: Path, batch_size: int, workers: int
) -> None:
    """By others of the same worker; batches stay whole, and a stream goes on alike."""
    paths = write_shards(tmp_path, [4, 4])
    for shard in range(2, 4):
        bad = {
            f"{shard}{key}.{end}": content
            for key in "abc"
            for end, content in (("jpg", damaged()), ("txt", b"bad"))
        }
        paths.append(str(write_tar(tmp_path / f"{shard:05}.tar", bad)))
    whole = taken(ShardStream(paths, 4, batch_size, 0), 28 // batch_size, workers)
    assert all(len(batch["id"]) == len(batch["pixels"]) == batch_size for batch in whole)
    assert set(ids(whole)) == {f"s{index:05}" for index in range(8)}
    if not workers:  # two epochs, the last sample of which may be left
        lost = sum(batch["skipped"].get("undecodable images", 0) for batch in whole)
        assert 12 - 28 % batch_size <= lost <= 12
    for done in (1, 4):
        rest = ShardStream(paths, 4, batch_size, 0, done_batches=done)
        assert_same(taken(rest, len(whole) - done, workers), whole[done:])


def test_a_worker_with_nothing_to_give_goes_on_to_the_next_epoch(tmp_path: Path) -> None:
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


def test_shards_of_which_nothing_can_be_decoded_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.sources.stream, "LOOK_AHEAD", 10)
    path = write_tar(tmp_path / "0.tar", {"a.jpg": damaged(), "a.txt": b"a"})
    with pytest.raises(ValueError, match="of 12 samples after 'a' only 0 can be decoded"):
        taken(ShardStream([str(path)], 4, 2, 0), 1)


def test_a_shard_that_goes_away_is_skipped(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2, 2])
    batches = loaded(ShardStream(paths, 4, 4, 0))
    assert next(batches)["skipped"] == {}
    Path(paths[1]).unlink()
    assert next(batches)["skipped"] == {"broken shards": 2}
    Path(paths[0]).unlink()
    with pytest.raises(ValueError, match="no captioned image in 2 shards: 2 broken shards$"):
        list(itertools.islice(batches, 2))


def test_a_name_that_is_a_command_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which webdataset would run."""
    monkeypatch.chdir(tmp_path)
    path = write_tar(Path("pipe:touch ran"), {"a.png": encoded(), "a.txt": b"a"})
    assert ids(taken(ShardStream([str(path)], 4, 1, 0), 1)) == ["a"]
    assert not Path("ran").exists()


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
        assert 10 <= most[0] <= 10 + 2 * BATCH + 2, done
    assert alive[0] == 0


@pytest.mark.parametrize(("world_size", "workers", "needed"), [(3, 0, 3), (3, 1, 3), (2, 2, 4)])
def test_too_few_shards_are_an_error(tmp_path: Path, world_size: int, workers: int, needed: int) -> None:
    paths = write_shards(tmp_path, [1, 1])
    with pytest.raises(ValueError, match=f"need at least {needed} shards, there are 2"):
        taken(ShardStream(paths, 4, 1, 0, world_size=world_size), 1, workers)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size and shuffle must be at least 1"),
        ({"shuffle": 0}, "batch_size and shuffle must be at least 1"),
        ({"resolution": 0}, "batch_size and shuffle must be at least 1"),
        ({"seed": -1}, "seed and done_batches at least 0"),
        ({"done_batches": -1}, "seed and done_batches at least 0"),
        ({"rank": 2, "world_size": 2}, "rank must be from 0 to below world_size, not 2 of 2"),
        ({"paths": ["a.tar", "a.tar"]}, "a shard is named more than once"),
    ],
)
def test_arguments_out_of_range_are_errors(wrong: dict[str, Any], message: str) -> None:
    right = {"paths": ["a.tar"], "resolution": 4, "batch_size": 1, "seed": 0}
    with pytest.raises(ValueError, match=message):
        ShardStream(**(right | wrong))
