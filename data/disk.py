"""A full disk: one error with the folder, of whatever library's that it is."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Raise ValueError with the folder in place of the many errors of a full disk."""
    try:
        yield
    except Exception as error:
        if any(map(is_full_disk, chain_of(error))):
            raise ValueError(
                f"no space left for {folder}, or a cache: free some; the same command continues"
            ) from error
        raise


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those in whose handling it came: torch's writer raises others than the disk's."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def is_full_disk(error: BaseException) -> bool:
    """Whether the error is a full disk's, or a full quota's, in the words of any library."""
    parts = ("No space left", "Disk quota", "PytorchStreamWriter failed", "os error 28")
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or any(part in str(error) for part in parts)
