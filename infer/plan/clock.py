"""The time of what a device has really done."""

import time

import torch


def now(device: torch.device | str | None = None) -> float:
    """Seconds; of a device after it has finished what it was given, for a GPU works behind Python's back."""
    if device is not None and (device := torch.device(device)).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
