"""Options of both `plan` commands: whether to measure, and what an hour costs."""

from dataclasses import dataclass

from jsonargparse.typing import PositiveFloat, PositiveInt

from data.cli import warn_no_effect


@dataclass(kw_only=True)
class PlanOptions:
    """Time and cost.

    Args:
        measure: run a little of the job on one device of this machine, and say how long all of it takes and
            how much memory it needs. Nothing is kept. --measure alone means true.
        price_per_hour: price of one device for an hour, in any currency. The cost is the hours x all devices
            of the job x this price.
    """

    measure: bool = False
    price_per_hour: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if self.price_per_hour and not self.measure:
            warn_no_effect("price_per_hour", "hours are known with --measure")


@dataclass(kw_only=True)
class ComparisonPlan(PlanOptions):
    """Time and cost.

    Args:
        measure_images: images of each mitigation that are made and timed; null: as many as take about a
            minute in all, at most a batch.
    """

    measure_images: PositiveInt | None = None


def with_measure(args: list[str]) -> list[str]:
    """The arguments with `--measure` alone as `--measure=true`."""
    following = [*args[1:], "--"]
    return [
        "--measure=true" if arg == "--measure" and after.startswith("-") else arg
        for arg, after in zip(args, following, strict=True)
    ]
