"""Folders copied between a disk and an object store, such as a run's results from a machine that will end."""

from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.files import digest, read_object, user_cache, write_atomically, write_json
from data.remote import filesystem, is_remote, retried, urls_of
from data.sources.rows import files_below


def copy_folder(source: str, target: str) -> tuple[int, int]:
    """How many files were copied, and how many had been copied before and are the same on both sides.

    Hidden files, such as those of a run that writes now, are left out. Each file is whole or absent in the
    target. What was copied is remembered in the user's cache, also where the copy breaks off.

    Raises ValueError unless one of the two is a URL, or where a name would leave the target;
    FileNotFoundError for a source without files.
    """
    if is_remote(source) == is_remote(target):
        raise ValueError(f"one of {source!r} and {target!r} must be a URL, such as s3://bucket/run")
    source, target = source.rstrip("/"), target.rstrip("/")
    up = is_remote(target)
    folder, url = (Path(source), target) if up else (Path(target), source)
    fs, root = filesystem(url)
    pairs = uploads(folder, root) if up else downloads(folder, url, root)
    copy = partial(put if up else fetch, fs)
    record = user_cache() / "copies" / f"{digest(*map(whole_name, (source, target)))[:20]}.json"
    before, after, copied = read_object(record), {}, 0
    try:
        for file, there in tqdm(pairs, "copy", unit="file", disable=None):
            name = file.relative_to(folder).as_posix()
            now = state(fs, file, there)
            if now is None or now != before.get(name):
                retried(name, partial(copy, file, there))
                copied, now = copied + 1, state(fs, file, there)
            after[name] = now
    finally:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, before | after)
    return copied, len(after) - copied


def uploads(folder: Path, root: str) -> list[tuple[Path, str]]:
    """Each file of the folder, and its path in the store."""
    if not (files := files_below(folder, Path.is_file)):
        raise FileNotFoundError(f"no files in {str(folder)!r}")
    return [(file, f"{root}/{file.relative_to(folder).as_posix()}") for file in files]


def downloads(folder: Path, url: str, root: str) -> list[tuple[Path, str]]:
    """The file in the folder for each path below a URL; ValueError for one outside of the folder."""
    pairs = [(folder / Path(there).relative_to(root), there) for _, there in urls_of(url)]
    for file, there in pairs:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{there!r} would leave {str(folder)!r}")
    return pairs


def put(fs: Any, file: Path, there: str) -> None:
    fs.put_file(str(file), there)


def fetch(fs: Any, file: Path, there: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda part: fs.get_file(there, str(part)))


def state(fs: Any, file: Path, there: str) -> list[Any] | None:
    """What changes with the file on either side; None where one side has none."""
    fs.invalidate_cache()
    if not file.is_file() or not retried(there, lambda: fs.exists(there)):
        return None
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, str(retried(there, lambda: fs.ukey(there)))]


def whole_name(name: str) -> str:
    return name if is_remote(name) else str(Path(name).resolve())
