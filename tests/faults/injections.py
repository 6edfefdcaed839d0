"""Ways to disturb a run, each with what must come of it."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch

from tests.faults import inside
from tests.faults.cases import Run
from tests.faults.disks import mount, mounted
from tests.processes import Command, until


class Seen(NamedTuple):
    """What came of a try: the last line of the command, and what is not as it should be."""

    line: str = ""
    wrong: str = ""


def error_lines(errors: str) -> list[str]:
    return [line for line in errors.replace("\r", "\n").splitlines() if line.startswith("error")]


def ends_equal(run: Run) -> str:
    """The same command again, without a fault: what is not as it should be."""
    codes, errors = run.ended(run.start())
    if any(codes):
        return f"again: exit codes {codes}: {last_line(errors)}"
    return "; ".join(run.different())


def last_line(errors: str) -> str:
    """The lines of errors, or the last one of whatever there is."""
    last = [line for line in errors.splitlines() if line.strip()][-1:]
    return " / ".join(error_lines(errors) or last)


def one_line(codes: list[int | None], errors: str) -> str:
    """What is wrong with the end of a command that failed: it is one line of a rank that says why."""
    lines = error_lines(errors)
    if "Traceback" in errors:
        return f"a traceback: {errors.strip().splitlines()[-1]}"
    if not 1 <= len(lines) <= len(codes) or len(lines) > len(set(lines)):
        return f"{len(lines)} lines of errors: {' / '.join(lines)}"
    # the first rank says it; those that wait for it are killed (`Run.ended`)
    return "" if codes[0] in (1, 2) and all(code in (1, 2, -9) for code in codes) else f"exit codes {codes}"


def killed(run: Run, random: Random) -> Seen:
    """A rank, at any moment; then the same command."""
    rank, moment = random.randrange(run.case.ranks), random.uniform(0, run.world.seconds[run.name])
    command = run.start()
    command.processes[rank].join(moment)
    command.kill(rank)
    _, errors = run.ended(command)
    wrong = "a traceback" if "Traceback" in errors else ""
    wrong = wrong or ends_equal(run)
    return Seen((error_lines(errors) or [""])[-1], wrong and f"rank {rank} after {moment:.1f} s: {wrong}")


def failed(run: Run, command: Command, repair: Callable[[], object]) -> Seen:
    """A command that must end with one line; after the repair, the same one ends as if nothing had been.

    Where it can do without what failed, it ends so at once.
    """
    codes, errors = run.ended(command)
    repair()
    wrong = one_line(codes, errors) or ends_equal(run) if any(codes) else "; ".join(run.different())
    return Seen(last_line(errors), wrong)


def survived(run: Run, command: Command) -> Seen:
    """A command that must end as if nothing had been."""
    codes, errors = run.ended(command)
    wrong = f"exit codes {codes}" if any(codes) else "; ".join(run.different())
    return Seen(last_line(errors) if wrong else "", wrong)


def full_disk(where: str, pattern: str, run: Run, random: Random) -> Seen:
    """The folder `where` of the run is a small disk, which is full when a file is to be written."""
    disk, left = run.folder / where, random.choice([0, 0, 16384])
    with mounted(disk):
        command = run.start(partial(inside.fill_at, str(disk), f"*{pattern}", left))
        until(lambda: (disk / "ballast").exists() or command.ended(), 300, command.errors)
        if not (disk / "ballast").exists():
            return Seen(wrong=f"nothing like {pattern} was written")
        return failed(run, command, (disk / "ballast").unlink)


def read_only(where: str, run: Run, random: Random) -> Seen:
    """A folder of the run on a disk that may only be read."""
    disk = run.folder / where
    with mounted(disk):
        mount("-o", "remount,ro", disk)
        return failed(run, run.start(), lambda: mount("-o", "remount,rw", disk))


def lost_shard(name: str, times: int, run: Run, random: Random) -> Seen:
    """A shard that is moved away at its opening of this number, and comes back later."""
    shard = run.folder / name
    command = run.start(partial(inside.hide_at, str(shard), times))
    until(lambda: Path(f"{shard}.moved").exists() or command.ended(), 100, command.errors)
    if not Path(f"{shard}.moved").exists():
        return Seen(wrong=f"{name} was not opened {times} times")
    return failed(run, command, lambda: os.rename(f"{shard}.moved", shard))


def slow_disk(run: Run, random: Random) -> Seen:
    return survived(run, run.start(partial(inside.slow_disk, str(run.folder), random.randrange(1000))))


def clock_back(run: Run, random: Random) -> Seen:
    return survived(run, run.start(partial(inside.clock_back, run.world.seconds[run.name] / 2)))


def broken(run: Run, random: Random) -> Seen:
    """A weight is NaN from step 4 on, of a run that has a checkpoint of step 2."""
    poison = '[{"class_path": "tests.train.spy.Poison", "init_args": {"step": 4, "after": false}}]'
    codes, errors = run.ended(run.start(None, "--trainer.callbacks", poison))
    kept = torch.load(run.out / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    wrong = one_line(codes, errors) or ("" if kept == 2 else f"the checkpoint is of step {kept}")
    return Seen(last_line(errors), wrong or ends_equal(run))
