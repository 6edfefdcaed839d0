"""Measure commands of `infer` in a process of its own, forked from one that has imported what they need."""

import json
import os
import resource
import sys
import time
from multiprocessing.connection import Connection
from pydoc import locate

import torch

from infer.__main__ import main

for module in ("callbacks.predict.writer", "infer.predict.module", "infer.score.command", "infer.report.page",
               "infer.index.command", "transformers.CLIPModel", "torchmetrics.image.kid"):  # fmt: skip
    locate(module)
UNIT = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, in MiB
Commands = list[list[str]]


def spent() -> tuple[float, float]:
    """The clock, and the processor seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), usage.ru_utime + usage.ru_stime


def peak() -> float:
    """The most memory that this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT


def measured(commands: Commands) -> tuple[float, float]:
    """Seconds and processor seconds of the commands; RuntimeError where one fails."""
    before = spent()
    for args in commands:
        if code := main(args):
            raise RuntimeError(f"infer {' '.join(args)} ended with {code}")
    after = spent()
    return after[0] - before[0], after[1] - before[1]


def run(answer: Connection, log: str, small: Commands, again: Commands, large: Commands, environment: dict):
    """Send a `Usage` as JSON: of `large`, beyond `again`, after `small` made what is made once a process."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    measured(small)
    constant, started = measured(again), peak()
    seconds, cpu_seconds = measured(large)
    usage = {"seconds": seconds - constant[0], "cpu_seconds": cpu_seconds - constant[1]}
    answer.send(json.dumps(usage | {"mib": peak() - started, "started_mib": started}))
