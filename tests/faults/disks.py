"""Small disks, full or read-only, on a folder of a run."""

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

SIZE = "size=48m"


class Skipped(Exception):
    """A fault that cannot be injected on this machine, and why."""


class mounted:
    """A disk in memory on a folder, which keeps its files; Skipped where none can be had."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        kept = self.folder.with_name("kept")
        self.folder.mkdir(exist_ok=True)
        self.folder.rename(kept)
        self.folder.mkdir()
        mount("-t", "tmpfs", "-o", SIZE, "tmpfs", self.folder)
        subprocess.run(["cp", "-a", f"{kept}/.", self.folder], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self.folder], check=True)


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Skipped("cannot mount a disk: run this as root, or under `unshare -Urm`")


def can_mount() -> bool:
    """Whether this process may mount a disk."""
    with TemporaryDirectory() as folder:
        try:
            mount("-t", "tmpfs", "-o", SIZE, "tmpfs", folder)
        except (Skipped, FileNotFoundError):
            return False
        subprocess.run(["umount", "-l", folder], check=True)
    return True
