"""Learning-rate schedules, by optimizer step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_constant(optimizer: Optimizer, warmup_steps: int) -> dict:
    """Linear warm-up to the optimizer's rate, constant after it."""
    return by_step(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup_steps)))


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, max_steps: int) -> dict:
    """Linear warm-up, then half a cosine down to zero at `max_steps`."""
    check_cosine(warmup_steps, max_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / (max_steps - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * done))

    return by_step(optimizer, factor)


def by_step(optimizer: Optimizer, factor) -> dict:
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
    }


def check_cosine(warmup_steps: int, max_steps: int) -> None:
    """ValueError when nothing is left of the run after the warm-up."""
    if max_steps <= warmup_steps:
        raise ValueError(
            f"a cosine decay needs trainer.max_steps ({max_steps}) above warmup_steps ({warmup_steps})"
        )
