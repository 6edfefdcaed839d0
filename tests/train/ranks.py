"""The ranks of a run, forked from one process that has imported for all: they start at once.

They find each other as Lightning's own do: it starts no others where LOCAL_RANK is set.
"""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pydoc import locate

from infer.models.pipeline import pipeline_class
from tests.slurm import free_ports
from train.__main__ import MODULES, main

# what a fit imports when it starts
for name in (*MODULES["fit"], "callbacks.monitor", "train.run_folder"):
    locate(name)
pipeline_class()


def rank(local_rank: int, port: int, args: list[str]) -> None:
    os.environ |= {"LOCAL_RANK": str(local_rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(main(args))


def start_ranks(args: list[str], count: int = 2) -> list[BaseProcess]:
    """Start `python -m train ARGS` as so many ranks."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    [port] = free_ports(1)
    ranks = [server.Process(target=rank, args=(number, port, args), daemon=True) for number in range(count)]
    for process in ranks:
        process.start()
    return ranks


def end_of(ranks: list[BaseProcess]) -> list[int | None]:
    """The exit codes."""
    for process in ranks:
        process.join(200)
    return [process.exitcode for process in ranks]
