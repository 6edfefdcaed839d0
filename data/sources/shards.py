"""Shards: tar files with an image and its caption under one key, as img2dataset and webdataset write them."""

import io
import json
import logging
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path

from data.disk import is_lost
from data.images.stored import MAX_BYTES, Span, Stored, read
from data.remote import Unreachable, lost, opened
from data.sources.rows import (
    IMAGE_SUFFIXES,
    NAMED,
    NOT_READ,
    UNREAD_SUFFIXES,
    Row,
    Source,
    caption_in_json,
    count_unused,
    file_id,
)

log = logging.getLogger(__name__)
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
COUNTS = ("count", "successes", "failed_to_download", "failed_to_resize")
# what tarfile raises for a header or a stream that is damaged
DAMAGE = (
    tarfile.TarError, zlib.error, LZMAError, EOFError, OSError, ValueError, OverflowError, RecursionError,
)  # fmt: skip
Members = dict[str, Stored]  # of one key, by suffix
APART: set[str] = set()  # folders of which this process has said that members are no neighbours


def is_shard(path: Path) -> bool:
    return path.name.endswith(SHARD_SUFFIXES) and not path.name.startswith(".")


def shards_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.iterdir() if is_shard(path))


def open_shards(paths: list[str], skipped: Counter) -> Source:
    """The total is known where every shard has its `_stats.json`."""
    counts = [stats for path in paths if (stats := read_stats(path))]
    total = sum(stats["successes"] for stats in counts) if len(counts) == len(paths) else None
    sums = sum(counts, Counter()) if counts else None
    return Source(f"webdataset shards ({len(paths)})", read_shards(paths, skipped), total, sums)


def read_stats(path: str) -> Counter | None:
    """What img2dataset counted for a shard: rows, successes, failures, and each error under its message."""
    name = next(path.removesuffix(suffix) for suffix in reversed(SHARD_SUFFIXES) if path.endswith(suffix))
    try:
        content = json.loads(Path(f"{name}_stats.json").read_bytes())
        stats = Counter({key: int(content[key]) for key in COUNTS})
        errors = {str(key): int(value) for key, value in content.get("status_dict", {}).items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("%s_stats.json is not img2dataset's: %r", name, error)
        return None
    errors.pop("success", None)
    return stats + Counter(errors)


def read_shards(paths: list[str], skipped: Counter) -> Iterator[Row]:
    """Rows of the shards; of one that breaks off those before the break. Nothing is unpickled or unpacked.

    Of a plain tar the headers are read, and images stay in it. What is compressed is held in memory: a shard
    at a time here, all shards where all rows are kept.
    """
    for path in paths:
        keys, repeated, apart = members_of(path, skipped)
        folder = os.path.dirname(path)
        if apart and folder not in APART and log.isEnabledFor(logging.WARNING):
            APART.add(folder)
            log.warning(
                "%s: the members of %d keys are no neighbours, such as %r: they are read together here, but "
                "not by webdataset", path, len(apart), min(apart),
            )  # fmt: skip
        count_unused(path, "repeated members", repeated, skipped, NAMED)
        yield from rows_of(path, keys, skipped)


def members_of(path: str, skipped: Counter) -> tuple[dict[str, Members], list[str], set[str]]:
    """Members of a shard by key (the name without its last suffix) and suffix; the names that repeat one.

    Third, the keys by webdataset's rule (the name up to its first dot) whose members are no neighbours.
    """
    keys: dict[str, Members] = {}
    repeated: list[str] = []
    links: list[str] = []
    large: list[str] = []
    begun, apart, previous = set(), set(), None
    try:
        with opened(path) as stream, tarfile.open(fileobj=stream) as archive:
            plain = isinstance(archive.fileobj, io.BufferedReader)
            size = os.fstat(stream.fileno()).st_size if plain else None
            while member := archive.next():
                archive.members.clear()  # or it would hold all headers
                if member.size < 0:
                    raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
                if member.islnk() or member.issym():
                    links.append(member.name)
                folder, _, base = member.name.rpartition("/")
                stem, dot, suffix = base.rpartition(".")
                if not member.isreg() or not stem or not dot or base.startswith("."):
                    continue
                if (size is None or member.issparse()) and member.size > MAX_BYTES:
                    large.append(member.name)
                    continue
                members = keys.setdefault(f"{folder}/{stem}" if folder else stem, {})
                if suffix.lower() in members:
                    repeated.append(member.name)
                    continue
                sample = f"{folder}/{base.partition('.')[0]}"
                if sample != previous and sample in begun:
                    apart.add(sample.removeprefix("/"))
                begun.add(sample)
                previous = sample
                if size is None or member.issparse():
                    members[suffix.lower()] = archive.extractfile(member).read()
                elif member.offset_data + member.size <= size:
                    members[suffix.lower()] = Span(path, member.offset_data, member.size)
                else:
                    raise EOFError(f"{member.name} is cut")
            rest = archive.fileobj.read(1 << 20)  # the second of two empty blocks, and then nothing
            if len(rest) < 512 or rest.strip(b"\0"):
                raise EOFError("no end mark" if len(rest) < 512 else "more follows its end mark")
    except Unreachable:
        raise
    except DAMAGE as error:
        if is_lost(error):
            raise Unreachable(lost(error)) from error
        skipped["broken shards"] += 1
        if str(error).startswith("file could not be opened"):  # and one line for each kind of compression
            error = "it is no tar"
        log.warning("%s breaks off, what came after is lost: %s", path, error)
    count_unused(path, "links to other members", links, skipped, NAMED)
    count_unused(path, "members of more than 1 GiB", large, skipped, NAMED)
    keys = {key: members for key, members in keys.items() if members}
    return keys, repeated, apart


def rows_of(path: str, keys: dict[str, Members], skipped: Counter) -> Iterator[Row]:
    """A row for each key, whatever the order of its members.

    An image with a caption of its own, such as `photo v1.0.jpg` with `photo v1.0.txt`, is a sample. Others
    follow webdataset's rule, whose keys end at the first dot: `000.seg.png` beside `000.jpg` is a further
    image of that key, and `000.image.png` alone has the caption `000.txt`.
    """
    further, parts, borrowed = [], set(), {}
    found = {key: [f".{suffix}" for suffix in members] for key, members in keys.items()}
    for key, members in keys.items():
        images = images_in(members)
        further += [f"{key}.{suffix}" for suffix in images[1:]]
        shorter = next((parent for parent in shorter_keys(key) if parent in keys), None)
        if shorter is None or (images and has_caption(members)):
            continue
        if not images:
            if not has_caption(members) or images_in(keys[shorter]):
                parts.add(key)
                found[shorter] += [f"{key.removeprefix(shorter)}{suffix}" for suffix in found[key]]
        elif images_in(keys[shorter]):
            parts.add(key)
            further.append(f"{key}.{images[0]}")
        elif has_caption(keys[shorter]):
            borrowed.setdefault(shorter, []).append(key)
    count_unused(path, "further images of one key", further, skipped, NAMED)
    for key, members in keys.items():
        if key in parts or [key] in borrowed.values():
            continue
        if len(others := borrowed.get(key, ())) == 1:
            members = keys[others[0]] | members
        images = images_in(members)
        unread = UNREAD_SUFFIXES & members.keys()
        caption = read(members["txt"]) if "txt" in members else caption_in_json(read(members.get("json")))
        yield Row(
            file_id(key), members[images[0]] if images else None, caption,
            missing=NOT_READ if unread else "without image",
            detail=f"it has {', '.join(found[key])}",
        )  # fmt: skip


def images_in(members: Members) -> list[str]:
    return [suffix for suffix in IMAGE_SUFFIXES if suffix in members]


def has_caption(members: Members) -> bool:
    return "txt" in members or "json" in members


def shorter_keys(key: str) -> Iterator[str]:
    """`a.b` and `a` for `a.b.c`; dots of folders do not count."""
    folder, slash, name = key.rpartition("/")
    while "." in name:
        name = name.rpartition(".")[0]
        yield f"{folder}{slash}{name}"
