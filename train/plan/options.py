"""Options of `python -m train plan`."""

from dataclasses import dataclass

from jsonargparse.typing import PositiveInt

from data.cli import warn_no_effect
from infer.plan.options import PlanOptions


@dataclass(kw_only=True)
class FitPlan(PlanOptions):
    """Time and cost.

    Args:
        measure_steps: optimizer steps that are timed, after a warm-up; fewer where they take more than a
            minute.
    """

    measure_steps: PositiveInt = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measure_steps != FitPlan.measure_steps and not self.measure:
            warn_no_effect("measure_steps", "nothing is timed without --measure")
