"""One process at a time fills a folder."""

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path


class FolderLock:
    """The folder's lock, `.lock`, until `release` or until the process ends, however it ends.

    ValueError where another process has it. Some network disks have no locks: there it does nothing.
    """

    def __init__(self, folder: Path):
        self.path = folder / ".lock"
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            self.file: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(self.file, 200).decode(errors="replace") or "another process"
                os.close(self.file)
                raise ValueError(
                    f"{folder} is being filled by {holder}: wait for it, or choose another folder"
                ) from None
            except OSError:
                break
            if self.is_the_file():
                break
            os.close(self.file)  # it was removed by its holder between the two lines above
        os.truncate(self.file, 0)
        os.write(self.file, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def is_the_file(self) -> bool:
        """Whether the open file is still the one of that name."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.file), os.stat(self.path))
        return False

    def release(self) -> None:
        """Let go, and remove the file; again: nothing."""
        if self.file is not None:
            self.path.unlink(missing_ok=True)  # before others can have it
            os.close(self.file)
            self.file = None
