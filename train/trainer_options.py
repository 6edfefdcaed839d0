"""Options of Lightning's trainer under which nothing right is trained."""

from typing import Any

from data.cli import warn_no_effect

PRECISIONS = ("None", "32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed")


def check_options(options: Any) -> None:
    """Raise ValueError for options under which nothing right is trained."""
    if options.default_root_dir:
        warn_no_effect("trainer.default_root_dir", "--out is the run folder")
    if options.max_steps < 1 and not options.fast_dev_run:
        raise ValueError("trainer.max_steps must be set: a run is that many optimizer steps")
    if options.overfit_batches:
        raise ValueError("trainer.overfit_batches changes planned draws: give data.limit instead")
    if str(options.precision) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision {options.precision} is not supported: frozen parts are kept in float32; "
            "use bf16-mixed or 16-mixed"
        )
