"""What goes wrong within a command's processes. Each function is a `prepare` of `tests.processes.Command`."""

import itertools
import os
import random
import shutil
import stat
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from data import files

HOUR = 3600.0


def begin(cache: str, prepare: Callable[[], None] | None) -> None:
    """A cache of its own, and no commit of the code, which may change meanwhile; then `prepare`."""
    os.environ |= {"ATTRACTION_BASIN_CACHE": cache, "GIT_DIR": os.devnull}
    if prepare:
        prepare()


def on_write(pattern: str, act: Callable[[], None]) -> None:
    """Call `act` once, right before a file or folder is written whose path matches."""
    count, original = itertools.count(), files.write_atomically

    def seen(path: str | Path) -> None:
        if fnmatch(str(path), pattern) and next(count) == 0:
            act()

    def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
        def write_after(part: Path) -> None:
            seen(path)
            write(part)

        original(path, write_after)

    def audit(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], str) and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            name = os.path.basename(args[0])
            if not files.TEMPORARY.fullmatch(name):  # it is being written by the function above
                seen(args[0])

    replace_everywhere("write_atomically", original, write_atomically)
    sys.addaudithook(audit)


def replace_everywhere(name: str, original: Any, other: Any) -> None:
    """In each module that has imported it."""
    for module in list(sys.modules.values()):
        if vars(module).get(name) is original:
            setattr(module, name, other)


def fill_at(disk: str, pattern: str, left: int) -> None:
    """Fill the disk, but for `left` bytes, before a file is written whose path matches."""
    on_write(pattern, lambda: fill(Path(disk), left))


def fill(disk: Path, left: int) -> None:
    with open(disk / "ballast", "wb") as file:
        if (size := shutil.disk_usage(disk).free - left) > 0:
            os.posix_fallocate(file.fileno(), 0, size)


def hide_at(shard: str, times: int) -> None:
    """Another user moves a shard away when it has been opened so many times."""
    count = itertools.count(1)

    def audit(event: str, args: tuple) -> None:
        if event == "open" and args[0] == shard and next(count) == times:
            os.rename(shard, f"{shard}.moved")

    sys.addaudithook(audit)


def clock_back(after: float) -> None:
    """The clock goes back an hour after so many seconds."""
    began, now, now_ns = time.monotonic(), time.time, time.time_ns

    def back() -> float:
        return HOUR if time.monotonic() - began > after else 0.0

    time.time = lambda: now() - back()
    time.time_ns = lambda: now_ns() - int(back() * 1e9)


def slow_disk(folder: str, seed: int) -> None:
    """A network disk: a rename takes half a second to two, and other processes see the file 3 s later."""
    began = time.time()  # what is older has been there all the time
    draws = random.Random(f"{seed} {os.environ.get('LOCAL_RANK')}")
    own: set[str] = set()  # of this process: it sees them at once
    replace, rename, status, scandir, listdir = os.replace, os.rename, os.stat, os.scandir, os.listdir

    def slowly(move: Callable) -> Callable:
        def moved(source: Any, target: Any, **options: Any) -> None:
            time.sleep(draws.uniform(0.5, 2))
            own.add(os.fspath(target))
            move(source, target, **options)

        return moved

    def late(path: Any) -> bool:
        if not isinstance(path, str | os.PathLike) or not (name := os.fspath(path)).startswith(folder):
            return False
        try:
            state = status(name)
        except OSError:
            return False
        mine = name in own or any(parent.as_posix() in own for parent in Path(name).parents)
        recent = state.st_ctime > max(began, time.time() - 3)
        return stat.S_ISREG(state.st_mode) and not mine and recent

    def stat_late(path: Any, **options: Any) -> os.stat_result:
        if late(path):
            raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
        return status(path, **options)

    def audit(event: str, args: tuple) -> None:
        if event == "open":
            if (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                own.add(str(args[0]))
            elif late(args[0]):
                raise FileNotFoundError(2, "No such file or directory", str(args[0]))

    class Entries:
        def __init__(self, path: Any = "."):
            self.entries = (entry for entry in scandir(path) if not late(entry.path))

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            return next(self.entries)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            self.entries.close()

        close = __exit__

    os.replace, os.rename, os.stat = slowly(replace), slowly(rename), stat_late
    os.scandir = Entries
    os.listdir = lambda path=".": [n for n in listdir(path) if not late(os.path.join(path, n))]
    sys.addaudithook(audit)
    from train.dataset import cache

    opened = cache.safe_open

    def safe_open(path: Path, *args: Any) -> Any:
        stat_late(path)
        return opened(path, *args)

    cache.safe_open = safe_open
