"""Files that are whole or absent, digests of their content, and text that is safe to show."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

TEMPORARY = re.compile(r"\.[0-9a-f]{32}(\.\w+)?")  # names that `write_atomically` gives
# of a URL: scheme, password, host and path, query; closing punctuation is the sentence's
URL = re.compile(r"(\w[\w+.-]*://)(?:[^\s/?#]*@)?([^\s?#]*)(?:[?#]\S*?(?=[\"'<>)\]}]*[:,;.]*(?:\s|$)))?")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but for tabs and newlines
DAY = 86400.0  # seconds: nobody writes one file for so long
REMEMBERED = 1 << 24  # bytes from which a digest is remembered


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)`, then rename: the file or folder is whole or absent.

    No temporary file stays where `write` fails. `remove_temporary_files` removes those of killed runs.
    """
    temporary = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        write(temporary)
        if temporary.is_dir():
            remove(path)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write the value atomically, its URLs without secrets."""
    write_atomically(path, lambda part: part.write_text(json.dumps(redacted(value), indent=2)))


def remove_temporary_files(folder: Path, older_than: float = 0) -> None:
    """Remove what killed runs left of `write_atomically` below the folder.

    older_than: seconds; 0 where nobody else may be writing.
    """
    for path in list(folder.rglob(".*")):
        with suppress(FileNotFoundError):  # another process removes it, too
            if TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime >= older_than:
                remove(path)


def one_line(error: Exception) -> str:
    """The message of another library's error in one line of at most 200 characters, without secrets."""
    message, _, _ = str(error).partition(" <_io")  # Pillow's: where in memory the bytes were
    text = redacted(" ".join(message.split())) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def redacted(value: Any) -> Any:
    """The text, list or dict with URLs cut to scheme, host and path: the rest may be a password or a key."""
    if isinstance(value, dict):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    return URL.sub(r"\1\2", value) if isinstance(value, str) else value


def printable(text: str) -> str:
    """The text with U+FFFD for characters that steer a terminal, such as those that clear it."""
    return CONTROLS.sub("\ufffd", text)


def user_cache() -> Path:
    """The folder $ATTRACTION_BASIN_CACHE, or attraction_basin in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "attraction_basin")
    return Path(os.environ.get("ATTRACTION_BASIN_CACHE") or default)


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's whole content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: str | Path) -> str:
    """`sha256_of`, which for a large file is remembered until its size or one of its times changes.

    The memory is `digests.json` in `user_cache()`.
    """
    path = Path(path).resolve()
    stat = path.stat()
    if stat.st_size < REMEMBERED:
        return sha256_of(path)
    memory = user_cache() / "digests.json"
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    entry = read_object(memory).get(str(path))
    if isinstance(entry, list) and entry[:-1] == stamp:
        return entry[-1]
    sha256 = sha256_of(path)
    if time.time_ns() - max(stamp[1:]) > 2e9:  # of a file just written, a clock's next tick may hide a change
        known = read_object(memory) | {str(path): [*stamp, sha256]}
        with suppress(OSError):  # it is read again next time
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, known)
    return sha256


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def digest(*parts: object) -> str:
    """Hexadecimal SHA-256 of the parts, in order: a change in any of them gives another."""
    sha256 = hashlib.sha256()
    for part in parts:
        binary = isinstance(part, (bytes, memoryview))
        sha256.update(part if binary else str(part).encode(errors="surrogatepass"))
        sha256.update(b"\0")
    return sha256.hexdigest()


def bytes_of(tensor: Any) -> memoryview:
    """The bytes of a torch tensor, for `digest`: without a copy where it is on the CPU and contiguous."""
    import torch

    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
