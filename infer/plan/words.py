"""Times, costs and devices in words: two digits are as much as an estimate is worth."""

from math import floor, log10
from typing import Any

import torch


def rounded(value: float) -> str:
    """Two significant digits: 0.43, 4.3, 43, 4,300."""
    if not value:
        return "0"
    value = round(value, 1 - floor(log10(abs(value))))
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """In the unit that people would choose: 43 s, 4.3 min, 3.2 h, 2.5 days."""
    for unit, size, end in (("s", 1, 60), ("min", 60, 60), ("h", 3600, 48)):
        if seconds < end * size:
            return f"{rounded(seconds / size)} {unit}"
    return f"{rounded(seconds / 86400)} days"


def cost(seconds: float, devices: int, price_per_hour: float) -> str:
    """The job's cost, such as `about 41 (16 device hours at 2.5)`."""
    hours = seconds / 3600 * devices
    return f"about {rounded(hours * price_per_hour)} ({rounded(hours)} device hours at {price_per_hour:g})"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()}, {threads} thread{'s' * (threads > 1)}"


def assumption(devices: int) -> str:
    """What is taken for granted where one of several devices was measured."""
    return f"one device was measured: {devices} are taken to be {devices} times as fast, without any loss"


def device_count(devices: Any, accelerator: Any) -> int:
    """How many devices `trainer.devices` asks for, also those that are not here."""
    if isinstance(devices, str) and devices != "auto":
        numbers = [number for number in devices.split(",") if number.strip()]
        devices = numbers if "," in devices else int(devices)
    if isinstance(devices, list | tuple):
        return len(devices)
    if devices in ("auto", -1):
        return max(1, torch.cuda.device_count()) if accelerator != "cpu" else 1
    return devices


def are_here(devices: int, accelerator: Any) -> bool:
    """Whether so many devices can be used here; a CPU is as many as are asked for."""
    gpus = torch.cuda.device_count()
    return accelerator == "cpu" or devices <= gpus or (accelerator == "auto" and not gpus)
