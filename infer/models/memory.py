"""Memory: the most that was held since a reset (the GPU's, or on Linux the process's), and too little."""

import re
from pathlib import Path

import torch

TOO_LITTLE = re.compile("out of memory|can't allocate memory|not enough memory|STATUS_ALLOC_FAILED", re.I)
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, of torch on a GPU or the CPU, in a library of CUDA, or in Python."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and bool(TOO_LITTLE.search(str(error)))
    )
