"""What the entry points share: help, unknown commands, and errors of the user's in one line."""

import errno
import logging
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.disk import is_full_disk
from data.files import one_line, printable, redacted
from data.option_names import unknown_option

# lines of a jsonargparse error that say nothing new
NOISE = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value type:|Problem with given class_path|Expected a path|"
    r"Expected a <class 'NoneType'>|Given value: (Namespace|NestedArg|{)|$"
)


def reasons(message: str) -> str:
    """What a jsonargparse error of many lines says, in one."""
    lines = re.sub(r'Parser key "[^"]+":', "", message).splitlines()
    reasons = [line.strip().removeprefix("- ") for line in lines]
    text = "; ".join(reason for reason in reasons if not NOISE.match(reason))
    text = re.sub("Expected a dot import path string: (.*)", r"no class \1", text)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.(Literal\[)", r"\1\2", text)


def is_users(error: Exception) -> bool:
    """ValueError, of a parser, a file or a disk, or Lightning's own, such as for a GPU that is not there."""
    return (
        isinstance(error, (ValueError, ArgumentError, OSError))
        or is_full_disk(error)
        or type(error).__name__ == "MisconfigurationException"
    )


def is_lost_process(error: Exception) -> bool:
    """Whether gloo or NCCL says that another process of the run is gone, whose own message says why."""
    gone = re.search("Connection (closed|reset) by peer|Broken pipe|remote process exited", str(error))
    return isinstance(error, RuntimeError) and bool(gone)


def without_traceback(error: Exception) -> str:
    """What an error says; of one in a DataLoader's worker torch's message is the traceback, which ends so."""
    text = str(error)
    if is_full_disk(error) and not text.startswith("no space left"):  # the words of a library
        return f"no space left: free some, and give the same command again ({one_line(error)})"
    if text.startswith("Does not validate"):
        return reasons(text)
    if isinstance(error, OSError) and error.errno and error.filename and error.strerror in text:
        return of_system(error)
    return text.strip().splitlines()[-1].partition(": ")[2] if "\nOriginal Traceback " in text else text


def of_system(error: OSError) -> str:
    """What the operating system says of a file, without its number, and what to do."""
    path = Path(os.fsdecode(error.filename))
    if error.errno == errno.EROFS:
        return f"{str(path.parent)!r} is on a read-only disk: give another folder, or make the disk writable"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission for {str(path)!r}: change its mode or owner, or give another path"
    return f"{error.strerror}: {str(path)!r}"


@contextmanager
def as_users(what: str) -> Iterator[None]:
    """A TypeError within is the user's, too: Lightning's trainer raises it for values of its options."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {reasons(str(error))}") from error


class AboveBars(logging.Handler):
    """Write warnings without secrets to stderr, each on a line of its own above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        line = printable(redacted(self.format(record)))
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)


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
    logging.lastResort = AboveBars(logging.WARNING)  # takes what no handler of the caller's takes
    if rest in (["--help"], ["-h"]) and (page := help_page(program, command)).exists():
        print(page.read_text(), end="")
        return 0
    pages = [help_page(program, name) for name in (command, *rest[:1]) if name in commands]  # plan stream
    known = "".join(page.read_text() for page in pages if page.exists())
    if known and (wrong := unknown_option(known, rest, f"{program} {command}")):
        report(ValueError(wrong))
        return 2
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for kernels that nothing here uses
    try:
        commands[command](rest)
    except Exception as error:
        if is_lost_process(error) and "--debug" not in args:
            report(ValueError("another process of this run ended: look for its message or its node's log"))
            return 1
        if "--debug" in args or not is_users(error):
            raise
        report(error)
        return 2 if isinstance(error, ArgumentError) else 1
    return 0


def help_page(program: str, command: str) -> Path:
    """The file of a command's help: the parser that it comes from takes seconds to build.

    `python -m tests.help_pages` writes the files; a test compares them with the parsers.
    """
    return Path(__file__).parents[1] / program.split()[-1] / "help" / f"{command}.txt"


def report(error: Exception) -> None:
    """Print the error on a line of its own, below progress bars, and once where all processes have it."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()
    rank = next(
        (os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0"
    )
    if rank == "0" or isinstance(error, OSError):
        source = "" if rank == "0" else f" (process {rank})"
        line = re.sub(r"\s*\n\s*", " ", without_traceback(error).strip())
        print(f"error{source}: {printable(redacted(line))}", file=sys.stderr)


def warn_no_effect(option: str, why: str) -> None:
    """Log that an option has no effect here, and why; the command continues without it."""
    logging.getLogger("attraction_basin").warning("%s has no effect: %s", option, why)
