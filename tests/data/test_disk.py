"""A full disk is one error with the folder, whichever library met it."""

import errno
from pathlib import Path

import pytest

from data.disk import full_disk_named


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


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(KeyError), full_disk_named(Path("outputs/x")):
        raise KeyError("unexpected")
