"""A full disk is one error with the folder, whichever library met it; what is lost is no damage."""

import errno
import os
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from data import disk, remote
from data.captioned import examined, load_captioned
from data.cli import is_users, without_traceback
from data.disk import full_disk_named
from data.sources.shards import read_shards
from tests.data.image_files import write_shard
from train.dataset.draws import stacked


def torch_writer() -> None:
    """torch's, when it closes the file that could not be written: its own text says nothing of a disk."""
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    finally:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 641280 vs 641168")


def pyarrow_or_pillow() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def safetensors() -> None:
    raise RuntimeError("Error while serializing: I/O error: Os { code: 28 } (os error 28)")


@pytest.mark.parametrize("write", [torch_writer, pyarrow_or_pillow, safetensors])
def test_the_folder_is_named(write) -> None:
    with (
        pytest.raises(OSError, match="no space left for outputs/x, or a cache: free some"),
        full_disk_named(Path("outputs/x")),
    ):
        write()


def test_a_full_disk_is_the_users_in_every_command() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch_writer()
    assert is_users(raised.value)
    assert without_traceback(raised.value).startswith("no space left: free some, and give the same command")
    assert not is_users(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_full_disk_is_no_network_that_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAIT", 0)
    attempts = []

    def fetch() -> None:
        attempts.append(1)
        pyarrow_or_pillow()

    with pytest.raises(remote.Unreachable, match="no space left to keep s3://bucket/a.tar"):
        remote.retried("s3://bucket/a.tar", fetch)
    assert len(attempts) == 1


def test_data_that_is_lost_is_an_error_and_a_damaged_image_is_skipped(tmp_path: Path) -> None:
    """Also where a decoder reads it for a batch: else the image would be black in a cache for ever."""
    shard = write_shard(tmp_path / "0.tar", "ab")
    [sample, _] = load_captioned(str(shard)).samples
    rows = list(read_shards([str(shard)], Counter()))
    moved = shard.rename(tmp_path / "moved")
    reads = [
        sample.rgb, partial(stacked, [sample], 8, False), partial(examined, rows[0]),
        partial(list, read_shards([str(shard)], Counter())),
    ]  # fmt: skip
    for read in reads:
        with pytest.raises(remote.Unreachable, match="data is gone, or its disk does not answer.*0.tar"):
            read()
    shard.write_bytes(bytes(moved.stat().st_size))  # there, but damaged
    assert stacked([sample], 8, False)[1].tolist() == [False]
    shard.write_bytes(b"no tar")
    assert list(read_shards([str(shard)], skipped := Counter())) == [] and skipped["broken shards"] == 1


def test_what_other_machines_wrote_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.time, "sleep", lambda _: None)
    answers = iter([False, False, True])
    assert disk.shows(lambda: next(answers))
    monkeypatch.setattr(disk, "LATE", 0)
    assert not disk.shows(lambda: False)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(KeyError), full_disk_named(Path("outputs/x")):
        raise KeyError("unexpected")


@pytest.mark.parametrize("number, line", [
    (errno.EROFS, "'/runs/out' is on a read-only disk: give another folder, or make the disk writable"),
    (errno.EACCES, "no permission for '/runs/out/.lock': change its mode or owner, or give another path"),
    (errno.ENOENT, "No such file or directory: '/runs/out/.lock'"),
])  # fmt: skip
def test_errors_of_the_system_say_what_to_do(number: int, line: str) -> None:
    """Those with words of our own keep them."""
    assert without_traceback(OSError(number, os.strerror(number), "/runs/out/.lock")) == line
    assert without_traceback(FileNotFoundError("no index 'x': build one")) == "no index 'x': build one"
