"""Commands as processes of their own. They start at once: the process that they fork from has imported all.

`tests/train/test_fit.py` also runs `python -m train` itself, which imports first.
"""

import atexit
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from pydoc import locate
from signal import SIGKILL
from weakref import finalize

import torch

from infer.models.pipeline import pipeline_class
from tests.conftest import ROOT
from train.cli import MODULES

# what fits and predictions import when they start
IMPORTED = ("callbacks.monitor", "callbacks.predict.writer", "infer.predict.module", "train.run_folder.claim")
for name in (*MODULES["fit"], *MODULES["stream"], *IMPORTED):
    locate(name)
pipeline_class()


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def until(what: Callable[[], object], seconds: float, about: Callable[[], str] = str) -> None:
    """Wait until `what()` is true; AssertionError with the text of `about()` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, about()
        time.sleep(0.1)


running: set["Command"] = set()


@atexit.register
def kill_all() -> None:
    """Kill what a failed test has left: else multiprocessing waits for it at the end."""
    for command in running:
        command.kill()


def run(
    program: str,
    args: list[str],
    errors: str,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    """`python -m PROGRAM ARGS` in this process: with one thread, and a process group of its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    for path, number in ((os.devnull, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    module = sys.modules["__main__"] = import_module(f"{program}.__main__")
    sys.argv = [module.__file__, *args]  # by which Lightning starts other ranks
    if prepare:
        prepare()
    sys.exit(module.main(args))


class Command:
    """`python -m PROGRAM ARGS`, running.

    Args:
        program: train or infer.
        args: of the program.
        ranks: 1: one process, which starts more if `args` ask for several devices. More: as many processes,
            each a rank. They have LOCAL_RANK, with which Lightning starts no process of its own.
        prepare: called in each process before the command; a function of a module, to be found by its name.
    """

    def __init__(
        self, program: str, args: list[str], ranks: int = 1, prepare: Callable[[], None] | None = None
    ):
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload([__name__])
        with tempfile.NamedTemporaryFile(prefix="stderr-", delete=False) as file:
            self.path = Path(file.name)
        finalize(self, self.path.unlink)
        [port] = free_ports(1)
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes: list[BaseProcess] = []
        for rank in range(ranks):
            environment = dict(os.environ) | (group | {"LOCAL_RANK": str(rank)} if ranks > 1 else {})
            given = (program, args, str(self.path), environment, prepare)
            self.processes.append(server.Process(target=run, args=given))
            self.processes[-1].start()
        running.add(self)

    def codes(self) -> list[int | None]:
        """Exit codes of the processes, None of those that run."""
        return [process.exitcode for process in self.processes]

    def ended(self) -> bool:
        """Whether one of the processes has ended."""
        return any(code is not None for code in self.codes())

    def kill(self, rank: int | None = None) -> None:
        """Each process, or one rank's, and what it has started."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, SIGKILL)
            process.kill()  # if it had no group yet

    def exit_codes(self) -> list[int | None]:
        """Of the processes, once they have ended."""
        for process in self.processes:
            process.join(200)
        running.discard(self)
        return self.codes()

    def errors(self) -> str:
        """What they wrote to stderr so far."""
        return self.path.read_text()
