"""Disks that are full, with one error for whatever library met it; that are lost; that are late."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOST = {  # a file, or the network disk that it lies on
    errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN,
}  # fmt: skip

LATE = 90.0  # seconds after which a network disk shows what other machines wrote: NFS needs up to a minute


def shows(ready: Callable[[], bool]) -> bool:
    """Whether `ready()` becomes true within LATE seconds: other processes have written what it looks for."""
    deadline = time.monotonic() + LATE
    while not (there := ready()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return there


def is_lost(error: BaseException) -> bool:
    """Whether a file is no longer there, or its disk does not answer: no damage of the file."""
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
    """Whether the error, or one before it, is a full disk's or quota's, in the words of any library."""
    parts = ("No space left", "Disk quota", "PytorchStreamWriter failed", "os error 28")
    return any(
        getattr(each, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        or any(part in str(each) for part in parts)
        for each in chain_of(error)
    )
