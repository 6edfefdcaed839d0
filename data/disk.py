"""Disks that are full: one error with the folder, of whatever library's that it is. And those that are lost."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOST = {  # a file, or the network disk that it lies on
    errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN,
}  # fmt: skip


def is_lost(error: BaseException) -> bool:
    """Whether a file that was listed is no longer there, or its disk does not answer: no damage of the file."""
    return isinstance(error, OSError) and error.errno in LOST


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Raise OSError with the folder in place of the many errors of a full disk.

    Each process of a run says it (`data.cli.report`): their disks may be different ones.
    """
    try:
        yield
    except Exception as error:
        if is_full_disk(error):
            raise OSError(
                f"no space left for {folder}, or a cache: free some; the same command continues"
            ) from error
        raise


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those in whose handling it came: torch's writer raises others than the disk's."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def is_full_disk(error: BaseException) -> bool:
    """Whether the error, or one that it followed, is a full disk's or quota's, in the words of any library."""
    parts = ("No space left", "Disk quota", "PytorchStreamWriter failed", "os error 28")
    return any(
        getattr(each, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        or any(part in str(each) for part in parts)
        for each in chain_of(error)
    )
