"""Webdataset shards, in img2dataset's form: `.tar` with an image, a `.txt` and a `.json` per key."""

import glob
import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.sources.rows import IMAGE_SUFFIXES, Row, Source, caption_in_json, file_id

log = logging.getLogger(__name__)
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
COUNTS = ("count", "successes", "failed_to_download", "failed_to_resize")


def shard_paths(pattern: str) -> list[str]:
    """Files of braces and globs (`{00000..00009}.tar`), sorted; FileNotFoundError for a part without any."""
    from braceexpand import braceexpand

    paths = set()
    for part in braceexpand(pattern):
        found = glob.glob(part)
        if not found:
            raise FileNotFoundError(f"no shard matches {part!r}")
        paths.update(found)
    return sorted(paths)


def shards_in(folder: Path) -> list[str]:
    names = (path.name for path in folder.iterdir())
    return sorted(
        str(folder / name) for name in names if name.endswith(SHARD_SUFFIXES) and not name.startswith(".")
    )


def open_shards(paths: list[str], skipped: Counter) -> Source:
    """The total is known where every shard has its `_stats.json`."""
    found = [stats for path in paths if (stats := read_stats(path))]
    total = sum(stats["successes"] for stats in found) if len(found) == len(paths) else None
    sums = sum(found, Counter()) if found else None
    return Source(f"webdataset shards ({len(paths)})", read_shards(paths, skipped), total, sums)


def read_stats(path: str) -> Counter | None:
    """What img2dataset counted for a shard: rows, successes, failures, and each error under its message."""
    name = next(path.removesuffix(suffix) for suffix in reversed(SHARD_SUFFIXES) if path.endswith(suffix))
    try:
        found = json.loads(Path(f"{name}_stats.json").read_bytes())
        stats = Counter({key: int(found[key]) for key in COUNTS})
        errors = {str(key): int(value) for key, value in found.get("status_dict", {}).items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("%s_stats.json is not img2dataset's: %r", name, error)
        return None
    errors.pop("success", None)
    return stats + Counter(errors)


def is_whole(path: str) -> bool:
    """Whether a shard ends in a tar's two empty blocks: tarfile takes a cut between members for the end."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    tail = b""
    try:
        with gzip.open(path) if packed else open(path, "rb") as tar:
            if not packed:
                tar.seek(max(0, Path(path).stat().st_size - 1024))
            while block := tar.read(1 << 20):
                tail = (tail + block)[-1024:]
    except (EOFError, OSError, zlib.error):
        return False
    return tail == bytes(1024)


def read_shards(paths: list[str], skipped: Counter) -> Iterator[Row]:
    """Rows of the shards; one that breaks off gives what it held before the break. Nothing is unpickled."""
    import webdataset as wds

    for path in paths:
        errors: list[Exception] = []  # `append` returns None, which tells webdataset to end the shard there
        # an absolute path, because webdataset would run a file called `pipe:...` as a command
        urls = wds.SimpleShardList([str(Path(path).absolute())])
        for row in wds.DataPipeline(urls, wds.tarfile_to_samples(handler=errors.append)):
            image = next((row[suffix] for suffix in IMAGE_SUFFIXES if suffix in row), None)
            caption = row["txt"] if "txt" in row else caption_in_json(row.get("json"))
            yield Row(file_id(row["__key__"]), image, caption)
        if errors or not is_whole(path):
            skipped["broken shards"] += 1
            log.warning(
                "%s breaks off, what came after is lost: %s", path, errors[0] if errors else "no end mark"
            )
