"""What a run has found: a line for each figure as it comes, and a table in Markdown at the end."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from callbacks.provenance import git_commit
from data.files import write_atomically

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "accelerate")
FAILED = "FAILED"


@dataclass
class Page:
    """The figures so far; `path` holds all of them after each one."""

    path: Path
    machine: dict[str, str]
    lines: list[tuple[str, str, str, str]] = field(default_factory=list)
    part: str = ""

    def say(self, figure: str, value: str, note: str = "") -> None:
        """Add a figure of the current part."""
        self.lines.append((self.part, figure, value, " ".join(note.split()).replace("|", "/")))
        print(": ".join(filter(None, self.lines[-1])), flush=True)
        write_atomically(self.path, lambda file: file.write_text(self.table(), encoding="utf-8"))

    def check(self, what: str, error: float, tolerance: float, note: str) -> None:
        """Add whether an error, which must not be NaN, is within its tolerance."""
        verdict = "ok" if error <= tolerance else "DIFFERS"
        self.say(what, verdict, f"{error:.2g}, tolerance {tolerance:.2g}: {note}")

    @property
    def bad(self) -> list[str]:
        """Parts that failed, and checks that differ."""
        return [f"{part}: {figure}" for part, figure, value, _ in self.lines if value in (FAILED, "DIFFERS")]

    def table(self) -> str:
        about = "\n".join(f"- {name}: {value}" for name, value in self.machine.items())
        rows = [("part", "figure", "value", "note"), ("---", "---", "---:", "---"), *self.lines]
        return f"{about}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def machine(device: str) -> dict[str, str]:
    """Card, driver and versions."""
    about = {"card": f"none: a CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        about = {
            "card": f"{card.name}, {card.total_memory / 2**30:.0f} GiB, sm_{card.major}{card.minor}",
            "driver": driver(),
            "CUDA and cuDNN": f"{torch.version.cuda}, {torch.backends.cudnn.version()}",
            "cuDNN benchmark": str(torch.backends.cudnn.benchmark),
            "TF32 in matmul and cuDNN": f"{torch.backends.cuda.matmul.allow_tf32}, "
            f"{torch.backends.cudnn.allow_tf32}",
        }
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return about | {
        "packages": f"{packages}, Python {platform.python_version()}",
        "commit": str(git_commit()),
    }


def driver() -> str:
    """The driver's version, as nvidia-smi gives it."""
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or "unknown"
