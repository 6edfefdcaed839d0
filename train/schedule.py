"""Learning rate by optimizer step."""

import math
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def lr_schedule(
    optimizer: Optimizer, decay: Literal["constant", "cosine"], warmup_steps: int, max_steps: int
) -> dict[str, Any]:
    """Linear warm-up to the optimizer's rate, then that rate, or half a cosine down to zero at `max_steps`.

    As `diffusers.optimization.get_scheduler`, whose first step of a warm-up, however, has rate 0 and trains
    nothing: here step n of W has n / W of the rate.
    """
    if decay == "cosine":
        check_cosine(warmup_steps, max_steps)

    def factor(step: int) -> float:
        if step < warmup_steps or decay == "constant":
            return min(1.0, (step + 1) / max(1, warmup_steps))
        done = min(1.0, (step - warmup_steps) / (max_steps - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * done))

    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
    }


def check_cosine(warmup_steps: int, max_steps: int) -> None:
    """Raise ValueError when the warm-up leaves no steps for the decay."""
    if max_steps <= warmup_steps:
        raise ValueError(
            f"a cosine decay needs trainer.max_steps ({max_steps}) above warmup_steps ({warmup_steps})"
        )
