"""Measure how time and memory of the commands grow with the number of records.

  python -m tests.bench.growth                       1,000 and 10,000 records
  python -m tests.bench.growth --largest 100000      also 100,000
  python -m tests.bench.growth score report          some rows

Each number is of a process of its own, beyond what 16 records take there. An exponent is the slope between
two sizes on logarithmic axes, of processor seconds and of memory: 1 is linear, and above 1.15 is flagged.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from math import isnan, nan
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.growth.browser import page_cells
from tests.bench.growth.child import run
from tests.bench.growth.curve import LIMIT, Usage, exponents, largest, sizes
from tests.bench.growth.work import WORK, Work
from tests.processes import free_ports

HEADS = ("row", "records", "seconds", "of processor", "exponent", "MiB", "exponent", "")
SMALL = 16


def main(args: list[str]) -> list[tuple[str, ...]]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(WORK)}")
    parser.add_argument("--largest", type=int, default=10_000, help="records")
    given = parser.parse_args(args)
    if unknown := [row for row in given.rows if row not in WORK]:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(WORK)}")
    lines = [HEADS, ("---",) + ("---:",) * 6 + ("---",)]
    for row in given.rows or WORK:
        for line in measure(row, WORK[row], sizes(given.largest)):
            print(*line, file=sys.stderr, flush=True)  # what is known if it is stopped
            lines.append(line)
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return lines


def measure(row: str, work: Work, counts: list[int]) -> Iterator[tuple[str, ...]]:
    """A line of the table for each number of records."""
    before: tuple[int, Usage] | None = None
    for count in counts:
        with TemporaryDirectory() as folder:
            usage = usage_of(work, count, Path(folder))
            notes = [page_cells(Path(folder, "large/report.html"))] if row == "report" else []
        of_time, of_memory = exponents((before[0], count), before[1], usage) if before else (nan, nan)
        if of_time > LIMIT or of_memory > LIMIT:
            notes.insert(0, "ABOVE LINEAR")
        before = count, usage
        numbers = f"{usage.seconds:.1f}", f"{usage.cpu_seconds:.1f}", power(of_time)
        yield row, f"{count:,}", *numbers, f"{usage.mib:.0f}", power(of_memory), "; ".join(notes)


def power(exponent: float) -> str:
    return "" if isnan(exponent) else f"{exponent:.2f}"


def usage_of(work: Work, count: int, folder: Path) -> Usage:
    """Run the work in as many processes as it has ranks; the largest numbers of them."""
    commands = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # others would only wait for each other, and count
    for name, size in (("small", SMALL), ("again", SMALL), ("large", count)):
        (folder / name).mkdir()
        commands.append(work.make(folder / name, size))
    [port], log = free_ports(1), folder / "log"
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([run.__module__])
    processes = []
    for rank in range(work.ranks):
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
        answer, ours = server.Pipe(duplex=False)
        given = (ours, str(log), *commands, group if work.ranks > 1 else {})
        process = server.Process(target=run, args=given)
        process.start()
        ours.close()  # so that a process that ends without an answer ends the waiting
        processes.append((process, answer))
    try:
        return largest([Usage(**json.loads(answer.recv())) for _, answer in processes])
    except EOFError:
        raise RuntimeError(f"{work.of}: {log.read_text()[-500:]}") from None
    finally:
        for process, _ in processes:
            process.join()


if __name__ == "__main__":
    main(sys.argv[1:])
