"""What the entry points share: help, unknown commands, and errors of the user's in one line."""

import logging
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data.files import redacted


def is_users(error: Exception) -> bool:
    """ValueError, of a parser, a file or a disk, or Lightning's own, such as for a GPU that is not there."""
    return (
        isinstance(error, (ValueError, ArgumentError, OSError))
        or type(error).__name__ == "MisconfigurationException"
    )


def without_traceback(error: Exception) -> str:
    """What an error says; of one in a DataLoader's worker torch's message is the traceback, which ends so."""
    text = str(error)
    return text.strip().splitlines()[-1].partition(": ")[2] if "\nOriginal Traceback " in text else text


@contextmanager
def as_users(what: str) -> Iterator[None]:
    """A TypeError within is the user's, too: Lightning's trainer raises it for values of its options."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error


def run(program: str, text: str, commands: dict[str, Callable[[list[str]], None]], args: list[str]) -> int:
    """Run `commands[args[0]]` on the rest; the exit code. `text` is the help.

    An error that is the user's is one line on stderr and 1, or 2 for options that cannot be parsed; with
    --debug, or any other, it is raised.
    """
    if not args or args[0] in ("-h", "--help"):
        print(text)
        return 0
    command, rest = args[0], [arg for arg in args[1:] if arg != "--debug"]
    if command not in commands:
        print(f"{program}: no command {command!r}; there are {', '.join(commands)}", file=sys.stderr)
        return 2
    try:
        commands[command](rest)
    except Exception as error:
        if "--debug" in args or not is_users(error):
            raise
        text = without_traceback(error)
        if "Does not validate against any of the Union subtypes" in str(error) and error.__cause__:
            text = str(error.__cause__)  # the parser's list of all types says no more
        print(f"error: {redacted(text)}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    return 0


def warn_no_effect(option: str, why: str) -> None:
    """Log that an option does nothing here, once for each command: the run goes on without it."""
    logging.getLogger("attraction_basin").warning("%s has no effect: %s", option, why)
