"""A row of the table: two ways to do the same work, timed in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from infer.plan.clock import now


class Seconds(float):
    """Seconds that a side has measured itself: they count in place of the time of its call."""


Side = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """What all rows are run with.

    Args:
        folder: for files that a row needs; deleted at the end.
        pipeline: diffusers folder or Hub id.
        device: cpu or cuda.
        dtype: of the model where it denoises.
        steps: of denoising, and optimizer steps of a training.
        images: trained on, or read from shards.
        vectors: searched in.
    """

    folder: Path
    pipeline: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    steps: int = 50
    images: int = 512
    vectors: int = 100_000


@dataclass(frozen=True)
class Row:
    """`make` prepares both sides and does none of what is timed."""

    name: str
    ours: str
    theirs: str
    make: Callable[[Setting], tuple[Side, Side]]


ROWS: dict[str, Row] = {}  # in the order of the table


def row(ours: str, theirs: str, name: str | None = None) -> Callable:
    """Add a function (setting) -> (ours, theirs) to the table; its own name is the row's."""

    def add(make: Callable[[Setting], tuple[Side, Side]]) -> Callable:
        key = name or make.__name__
        ROWS[key] = Row(key, ours, theirs, make)
        return make

    return add


def seconds_of(side: Side, device: str) -> float:
    started = now(device)
    result = side()
    return float(result) if isinstance(result, Seconds) else now(device) - started


@dataclass(frozen=True)
class Timing:
    """Seconds of both sides in each round."""

    row: Row
    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """ours / theirs of each round: what slows the machine for a while slows both."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def cells(self) -> list[str]:
        """Median seconds of both, median ratio, and its smallest and largest."""
        ratios = self.ratios
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        return [f"{median(self.ours):.3f}", f"{median(self.theirs):.3f}", f"{median(ratios):.2f}", spread]


def timed(row: Row, setting: Setting, rounds: int) -> Timing:
    """Both sides once to warm up, then in turn; which one begins alternates."""
    sides = row.make(setting)
    for side in sides:
        side()
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1)[:: -1 if number % 2 else 1]:
            seconds[which].append(seconds_of(sides[which], setting.device))
    return Timing(row, *seconds)
