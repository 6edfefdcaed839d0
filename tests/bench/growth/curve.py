"""What a number of records costs, and with which power of it the cost grows."""

import math
from dataclasses import dataclass

LIMIT = 1.15  # an exponent above this is flagged: more than linear
LEAST_SECONDS, LEAST_MIB = 0.2, 20.0  # below which a difference is noise


@dataclass(frozen=True)
class Usage:
    """Of one process: what it took beyond 16 records.

    Attributes:
        seconds: by the clock.
        cpu_seconds: of the processor; others that work on the machine change it little.
        mib: the peak of resident memory, beyond what the process had before.
        started_mib: what it had before.
    """

    seconds: float
    cpu_seconds: float
    mib: float
    started_mib: float


def exponent(counts: tuple[int, int], costs: tuple[float, float], least: float) -> float:
    """k of cost ~ n^k: log(cost2 / cost1) / log(n2 / n1). NaN where the larger cost is below `least`.

    A smaller cost below `least` counts as `least`, which makes the exponent too small rather than too large.
    """
    if costs[1] < least:
        return math.nan
    return math.log(costs[1] / max(costs[0], least)) / math.log(counts[1] / counts[0])


def exponents(counts: tuple[int, int], before: Usage, after: Usage) -> tuple[float, float]:
    """Of the processor seconds and of the memory."""
    return (
        exponent(counts, (before.cpu_seconds, after.cpu_seconds), LEAST_SECONDS),
        exponent(counts, (before.mib, after.mib), LEAST_MIB),
    )


def largest(usages: list[Usage]) -> Usage:
    """Of several processes, each number of the one that needs most."""
    return Usage(**{name: max(getattr(each, name) for each in usages) for name in Usage.__annotations__})


def sizes(most: int) -> list[int]:
    """1,000, 10,000 and so on up to `most`, which is the last; below 1,000 also a tenth of it."""
    between = [10**power for power in range(3, 9) if 10**power < most]
    return [*(between or [max(1, most // 10)]), most]
