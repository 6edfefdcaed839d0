"""Compare the time that this project takes with what people use otherwise, and a mitigation with none.

  python -m tests.bench                        every row, on the bundled model
  python -m tests.bench plain stp_4 dtp        some
  python -m tests.bench plain stp_16 --pipeline models/sd21 --device cuda --dtype float16

A row has two sides that do the same work. They run in turn, round after round; nothing else should run then.
The table has the median seconds of both, and of the rounds' ratios ours / theirs the median and the spread.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from data.scenes import BASE
from infer.predict.trainer import quiet_lightning
from tests.bench import commands, denoising, limits, reading, scoring, training  # noqa: F401  (they add the rows)
from tests.bench.rows import ROWS, Setting, Timing, timed


def main(args: Sequence[str]) -> list[Timing]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pipeline", default=str(BASE), help="diffusers folder or Hub id")
    parser.add_argument("--steps", type=int, default=50, help="of denoising, or of training")
    parser.add_argument("--images", type=int, default=512, help="trained on, or read from shards")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    given = parser.parse_args(args)
    if unknown := [name for name in given.rows if name not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    quiet_lightning()
    with TemporaryDirectory() as folder:
        setting = Setting(
            Path(folder), given.pipeline, given.device, getattr(torch, given.dtype), given.steps, given.images
        )
        timings = []
        for name in given.rows or ROWS:
            timings.append(timed(ROWS[name], setting, given.rounds))
            print(name, *timings[-1].cells(), file=sys.stderr, flush=True)  # what is known if it is stopped
    Console(width=120).print(table_of(timings, given.rounds))
    return timings


def table_of(timings: list[Timing], rounds: int) -> Table:
    table = Table(title=f"{rounds} rounds, {torch.get_num_threads()} threads")
    for column in ("row", "ours", "theirs"):
        table.add_column(column)
    for column in ("ours, s", "theirs, s", "ratio", "spread"):
        table.add_column(column, justify="right", no_wrap=True)
    for timing in timings:
        table.add_row(timing.row.name, timing.row.ours, timing.row.theirs, *timing.cells())
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
