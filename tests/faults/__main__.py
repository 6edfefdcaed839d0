"""Inject faults into real commands on tiny models, and print what came of each: one table.

python -m tests.faults [--seed 0] [--only NAME ...] [--repeats 20] [--out FOLDER]
"""

import argparse
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.faults.cases import Run, World
from tests.faults.disks import Skipped
from tests.faults.injections import Seen
from tests.faults.rows import FAULTS, Fault

HEADER = "| fault | command | tries | outcome | the line that a user saw |\n|---|---|---|---|---|"


def try_out(fault: Fault, world: World, seed: int, repeats: int) -> tuple[str, bool]:
    """The fault's row of the table, and whether it is as it should be."""
    seen: list[Seen] = []
    world.whole(fault.case)
    for number in range(min(fault.tries or repeats, repeats)):
        random = Random(f"{seed} {fault.name} {number}")
        try:
            seen.append(fault.inject(Run(world, fault.case), random))
        except Skipped as error:
            return f"| {fault.what} | {fault.case} | 0 | skipped: {error} | |", True
    wrong = [each.wrong for each in seen if each.wrong]
    lines = dict.fromkeys(each.line for each in seen if each.line)
    outcome = f"{len(seen) - len(wrong)} ended equal"
    if wrong:
        outcome += f", {len(wrong)} WRONG: {' // '.join(dict.fromkeys(wrong))}"
    cells = (fault.what, fault.case, str(len(seen)), outcome, "<br>".join(lines))
    return f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |", not wrong


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="faults whose names begin so")
    parser.add_argument("--repeats", type=int, default=20, help="kills of each command")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for faults.md")
    options = parser.parse_args(args)
    names = tuple(options.only or ("",))
    faults = [fault for fault in FAULTS if fault.name.startswith(names)]
    if not faults:
        parser.error(f"no such fault; there are: {', '.join(fault.name for fault in FAULTS)}")
    rows, right = [HEADER], True
    print(HEADER)
    with TemporaryDirectory() as folder:
        world = World(Path(folder))
        for fault in faults:
            row, as_it_should_be = try_out(fault, world, options.seed, options.repeats)
            print(row, flush=True)
            rows, right = [*rows, row], right and as_it_should_be
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "faults.md").write_text("\n".join(rows) + "\n")
    return not right


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
