"""Files that are whole or absent, and other libraries' errors in one line."""

import os
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
