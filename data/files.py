"""Files that are whole or absent, and other libraries' errors in one line."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any
from uuid import uuid4


def write_atomically(path: Path, write: Any) -> None:
    """`write(temporary path)`, then rename: the file is whole or absent."""
    part = path.with_name(f".{uuid4().hex}{path.suffix}")
    write(part)
    os.replace(part, path)


def one_line(error: Exception) -> str:
    """What somebody else's error says, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def redacted(value: str) -> str:
    """The text with its URLs cut to scheme, host and path: the rest may be a password or a key."""
    return re.sub(r"(\w[\w+.-]*://)(?:[^\s/?#]*@)?([^\s?#\"'<>]*)[?#]?[^\s\"'<>]*", r"\1\2", value)


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
