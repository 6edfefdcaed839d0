"""Inputs that are wrong, with the command that reads each and the one line that its user sees.

`python -m tests.bad_inputs --out FOLDER` writes a page of them; tests/test_bad_inputs.py runs them all.
"""

import logging
import re
import shlex
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from data.cli import AboveBars, run
from tests.data.image_files import write_folder

Files = dict[str, bytes | str] | Callable[[Path], Any]  # by name, or what writes them into a folder


class Bad(NamedTuple):
    """One input.

    Attributes:
        what: in words.
        files: the files, in the folder in which the command runs.
        argument: of the command.
        line: what is seen, in which `...` is any text. One that begins with `error: ` ends the command;
            another is a warning, after which it continues as long as anything is left.
    """

    what: str
    files: Files
    argument: str
    line: str


class Group(NamedTuple):
    """Inputs of one command.

    Attributes:
        title: what they are.
        command: how a user gives them; {} is the argument.
        read: the part of the command that reads them, given the arguments. Its errors are reported as the
            command's are.
        inputs: the inputs.
    """

    title: str
    command: str
    read: Callable[..., Any]
    inputs: list[Bad]


class Seen(NamedTuple):
    """The exit code, and the lines on stderr."""

    code: int
    lines: list[str]

    def errors(self) -> list[str]:
        return [line for line in self.lines if line.startswith("error: ")]

    def like(self, line: str) -> list[str]:
        """The lines that are that one, in which `...` is any text."""
        pattern = ".*".join(map(re.escape, line.split("...")))
        return [each for each in self.lines if re.fullmatch(pattern, each)]


def try_out(group: Group, bad: Bad, folder: Path) -> Seen:
    """Give the input to the command, in an empty folder. An error that is not the user's is raised."""
    bad.files(folder) if callable(bad.files) else write_folder(folder, bad.files)
    handler, errors, root = AboveBars(logging.WARNING), StringIO(), logging.getLogger()
    root.addHandler(handler)  # as a handler of pytest's is there, the last resort is silent
    try:
        with chdir(folder), redirect_stderr(errors), redirect_stdout(StringIO()):
            commands = {"read": lambda args: group.read(*args)}
            code = run("python -m x", "", commands, ["read", *shlex.split(bad.argument)])
    except SystemExit as stop:  # of a whole command
        code = stop.code
    finally:
        root.removeHandler(handler)
    return Seen(code, errors.getvalue().strip().splitlines())


def fault(bad: Bad, seen: Seen) -> str | None:
    """What is not as it should be; None if all is."""
    if not seen.like(bad.line):
        return f"{bad.what}: {seen.lines} instead of {bad.line!r}"
    errors = seen.lines[-1:] if seen.code else []  # one, as the last line, of a command that fails
    if seen.errors() != errors or bad.line.startswith("error: ") and not seen.code:
        return f"{bad.what}: exit code {seen.code}, {seen.lines}"
    return None
