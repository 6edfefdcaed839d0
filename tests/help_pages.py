"""Write the help of every command to its file: python -m tests.help_pages

With --check the files that are out of date are named instead. A process of its own, for a parser names the
classes that are imported so far.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import infer.__main__
import train.__main__
import train.cli
from data.cli import help_page

PROGRAMS = {
    "python -m infer": (
        infer.__main__.main,
        ("predict", "plan", "compare", "audit", "score", "basin", "calibrate", "detect", "index", "doctor"),
    ),
    "python -m train": (train.__main__.main, (*train.cli.MODULES, "plan")),
}
COLUMNS = 100


def help_of(program: str, command: str) -> str:
    """What the command's own parser prints: the option twice is not answered from the file."""
    width, printed = os.environ.get("COLUMNS"), StringIO()
    os.environ["COLUMNS"] = str(COLUMNS)
    try:
        with redirect_stdout(printed), suppress(SystemExit):
            PROGRAMS[program][0]([command, "--help", "--help"])
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    return printed.getvalue()


def pages() -> Iterator[tuple[str, str, Path]]:
    """(program, command, file) of every command."""
    for program, (_, commands) in PROGRAMS.items():
        yield from ((program, command, help_page(program, command)) for command in commands)


if __name__ == "__main__":
    texts = {path: help_of(program, command) for program, command, path in pages()}
    if "--check" in sys.argv:
        sys.exit("\n".join(str(path) for path, text in texts.items() if path.read_text() != text) or 0)
    for path, text in texts.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(path)
