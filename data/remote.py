"""Files of object stores and web servers (s3://, gs://, hf://, https://), fetched when they are read.

A file has a place in the user's cache from the moment that it is found, and is fetched into it, whole, when
it is first read: of a shard everything is read when data is loaded. What was used longest ago goes where the
cache would exceed $ATTRACTION_BASIN_REMOTE_GB (100 GiB by default), and is fetched again when it is read
again. fsspec talks to the stores, which take their keys from their own environment variables and files.
"""

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar

from data.disk import is_full_disk
from data.files import one_line, read_object, redacted, remove, user_cache, write_atomically, write_json

log = logging.getLogger(__name__)
URL = re.compile(r"([a-z][a-z0-9+.-]*)://.")
ATTEMPTS = 4
WAIT = 1.0  # seconds before the second attempt, and twice as long before each further one
GIB = 1 << 30
PACKAGES = {"s3": "attraction-basin[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
lock = Lock()
Result = TypeVar("Result")


class Unreachable(OSError):
    """A store or a disk that does not answer, or refuses: no reason to go on with less data."""


def lost(error: OSError) -> str:
    """The message for a file of a disk that was there when the data was listed (`data.disk.is_lost`)."""
    why = one_line(error)
    return f"data is gone, or its disk does not answer ({why}): give the same command again when it is back"


def is_remote(name: str) -> bool:
    """Whether the name is a URL, such as s3://bucket/key."""
    return bool(URL.match(name))


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path there.

    ValueError for a store that cannot be read here, or a URL with a key in it, which files would keep.
    """
    from fsspec.core import url_to_fs

    if re.search(r"://[^/]*@", url):
        raise ValueError(f"{redacted(url)}: leave the key out of the URL, and set the store's own variables")
    try:
        return url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(url.partition("://")[0], "fsspec's package for it")
        raise ValueError(f"{url} needs another package: pip install '{package}'") from error
    except ValueError as error:
        raise ValueError(f"{url}: {one_line(error)}") from error


def retried(what: str, action: Callable[[], Result]) -> Result:
    """What the action returns, within four attempts; Unreachable, which names `what`, and the last reason.

    A missing file (FileNotFoundError), a refused key and a full disk are not tried again.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except LASTING as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else Unreachable
            raise kind(f"cannot reach {what}: {one_line(error)}") from error
        except Exception as error:  # of a network: a dozen kinds from as many libraries
            if is_full_disk(error):
                raise Unreachable(f"no space left to keep {what} in {root()}: free some") from error
            if attempt == ATTEMPTS:
                raise Unreachable(f"cannot reach {what} in {ATTEMPTS} attempts: {one_line(error)}") from error
            log.warning(
                "%s: attempt %d of %d follows, after %s", what, attempt + 1, ATTEMPTS, one_line(error)
            )
            time.sleep(WAIT * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


def urls_of(pattern: str) -> list[tuple[Any, str]]:
    """File system and path of each file of braces and globs, or below a folder, sorted.

    FileNotFoundError for a part without any.
    """
    from braceexpand import braceexpand

    found: dict[str, Any] = {}
    for part in braceexpand(pattern):
        fs, path = filesystem(part)
        is_glob = any(sign in path for sign in "*?[")
        names = retried(part, lambda fs=fs, path=path, all=fs.glob if is_glob else fs.find: all(path))
        if not names:
            raise FileNotFoundError(f"no file matches {part!r}")
        found |= dict.fromkeys(names, fs)
    return [(fs, path) for path, fs in sorted(found.items(), key=lambda pair: pair[0])]


def places(pattern: str) -> list[str]:
    """Where the files of a pattern lie once they are read, sorted.

    What was kept of a file that is another one in the store now is removed.
    """
    paths = []
    for fs, there in urls_of(pattern):
        url = fs.unstrip_protocol(there)
        if ".." in url.split("/"):
            raise ValueError(f"{url} would leave the folder of the cache: give the file another name")
        path = root() / re.sub(r":?//+", "/", url)
        about = {"url": url, "mark": str(retried(url, lambda fs=fs, there=there: fs.ukey(there)))}
        if read_object(beside(path)) != about:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            write_json(beside(path), about)
        paths.append(str(path))
    return sorted(paths)


def present(path: str | Path) -> Path:
    """The path, with its file there: that of one of `places` is fetched, where it is not."""
    path = Path(path)
    if not path.is_relative_to(root()):
        return path
    if path.is_file():
        os.utime(path)
    elif url := read_object(beside(path)).get("url"):
        fs, there = filesystem(url)
        make_room(retried(url, lambda: fs.size(there)) or 0)
        retried(url, lambda: write_atomically(path, lambda part: fs.get_file(there, str(part))))
    return path


def opened(path: str | Path, buffering: int = -1) -> BinaryIO:
    """The file of a path, of a store or not, open for reading: then no other may remove it."""
    for _ in range(ATTEMPTS):
        with lock:  # or another thread makes room in between, as another process still may
            file = present(path)
            try:
                return file.open("rb", buffering)
            except FileNotFoundError:
                if not file.is_relative_to(root()):
                    raise
    raise Unreachable(f"{path} is removed again and again: give ATTRACTION_BASIN_REMOTE_GB more room")


def mark_of(path: str | Path) -> str | None:
    """What changes with the content of the file of one of `places`, fetched or not; None for other paths."""
    path = Path(path)
    return read_object(beside(path)).get("mark") if path.is_relative_to(root()) else None


def fetched(url: str) -> Path:
    """The one file of a URL, fetched; OSError where it cannot be had."""
    [place] = places(url)
    return present(place)


def root() -> Path:
    return user_cache() / "remote"


def beside(path: Path) -> Path:
    """Where it is said what a place holds."""
    return path.with_name(f".{path.name}.json")


def make_room(size: int) -> None:
    """Remove what was used longest ago until `size` bytes more keep to the limit."""
    known = []
    for path in root().rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            stat = path.stat()
            known.append((stat.st_mtime_ns, stat.st_size, path))
    over = sum(each for _, each, _ in known) + size - limit()
    for _, each, path in sorted(known):
        if over <= 0:
            return
        remove(path)
        over -= each


def limit() -> float:
    """Bytes that the cache may hold; ValueError for a limit that is no number."""
    given = os.environ.get("ATTRACTION_BASIN_REMOTE_GB", "100")
    try:
        return float(given) * GIB
    except ValueError as error:
        raise ValueError(f"ATTRACTION_BASIN_REMOTE_GB is a number of GiB, not {given!r}") from error
