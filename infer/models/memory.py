"""The most memory that was held at once since a reset: the GPU's, or on Linux the process's."""

import re
from pathlib import Path

import torch

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        RESET.write_text("5")  # VmHWM counts from here


def peak_gib(device: torch.device) -> float:
    """GiB allocated on the GPU, or resident in the process; NaN where neither is known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if not RESET.exists():
        return float("nan")
    return int(re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())[1]) / 2**20
