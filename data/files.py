"""Files that are whole or absent, and other libraries' errors in one line."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

TEMPORARY = re.compile(r"\.[0-9a-f]{32}(\.\w+)?")  # names that `write_atomically` gives


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)`, then rename: the file is whole or absent, and no temporary file stays."""
    temporary = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed runs left of `write_atomically`. Nobody may be writing below the folder."""
    for path in folder.rglob(".*"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def one_line(error: Exception) -> str:
    """What somebody else's error says, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's whole content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: object) -> str:
    """Hexadecimal SHA-256 of the parts, in order: a change in any of them gives another."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update((part if isinstance(part, bytes) else str(part).encode()) + b"\0")
    return sha256.hexdigest()
