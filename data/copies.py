"""Folders copied between a disk and an object store, such as a run's results from a machine that will end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.files import digest, read_object, user_cache, write_atomically, write_json
from data.remote import filesystem, is_remote, retried, urls_of
from data.sources.rows import files_below


def copy_folder(source: str, target: str) -> tuple[int, int]:
    """How many files were copied, and how many had been copied before and are the same on both sides.

    Hidden files, such as those of a run that writes now, are left out. Each file is whole or absent in the
    target. What was copied is remembered in the user's cache.

    Raises ValueError unless one of the two is a URL, or where a name would leave the target;
    FileNotFoundError for a source without files.
    """
    if is_remote(source) == is_remote(target):
        raise ValueError(f"one of {source!r} and {target!r} must be a URL, such as s3://bucket/run")
    source, target = source.rstrip("/"), target.rstrip("/")
    record = user_cache() / "copies" / f"{digest(*map(whole_name, (source, target)))[:20]}.json"
    before, after, copied = read_object(record), {}, 0
    pairs = [*(uploads if is_remote(target) else downloads)(source, target)]
    for name, stamp, copy in tqdm(pairs, "copy", unit="file", disable=None):
        if name not in before or before[name] != stamp():
            retried(name, copy)
            copied += 1
        after[name] = stamp()
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, after)
    return copied, len(after) - copied


Pair = tuple[str, Callable[[], list[Any] | None], Callable[[], Any]]  # name, state of both sides, copy


def uploads(source: str, target: str) -> Iterator[Pair]:
    folder, (fs, root) = Path(source), filesystem(target)
    if not (files := files_below(folder, Path.is_file)):
        raise FileNotFoundError(f"no files in {source!r}")
    for file in files:
        name = file.relative_to(folder).as_posix()
        there = f"{root}/{name}"
        yield (
            name,
            lambda file=file, there=there: state(file, fs, there),
            lambda file=file, there=there: fs.put_file(str(file), there),
        )


def downloads(source: str, target: str) -> Iterator[Pair]:
    folder, (fs, root) = Path(target), filesystem(source)
    for _, there in urls_of(source):
        name = Path(there).relative_to(root).as_posix()
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{there!r} would leave {target!r}")
        yield (
            name,
            lambda file=file, there=there: state(file, fs, there),
            lambda file=file, there=there: fetch(file, fs, there),
        )


def fetch(file: Path, fs: Any, there: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda part: fs.get_file(there, str(part)))


def state(file: Path, fs: Any, there: str) -> list[Any] | None:
    """What changes with the file on either side; None where one side has none."""
    fs.invalidate_cache()
    if not file.is_file() or not retried(there, lambda: fs.exists(there)):
        return None
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, str(retried(there, lambda: fs.ukey(there)))]


def whole_name(name: str) -> str:
    return name if is_remote(name) else str(Path(name).resolve())
