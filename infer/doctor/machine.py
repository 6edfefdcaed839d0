"""What is on this machine: each check gives its findings."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

import torch

from infer.doctor.checks import GIB, SECONDS, Finding


def packages() -> Iterator[Finding]:
    """Versions of Python and of all that `pyproject.toml` needs."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in requires("attraction-basin") or []]
    except PackageNotFoundError:
        yield Finding("packages", "this project is not installed: pip install -e .", True)
        return
    wrong = []
    for each in (each for each in needed if not each.marker or each.marker.evaluate({"extra": ""})):
        try:
            if not each.specifier.contains(version(each.name), prereleases=True):
                wrong.append(f"{each.name} {version(each.name)}, not {each.specifier}")
        except PackageNotFoundError:
            wrong.append(f"no {each.name}")
    names = ("torch", "lightning", "diffusers", "transformers")
    found = ", ".join(f"{name} {version(name)}" for name in names if f"no {name}" not in wrong)
    yield Finding("packages", f"Python {sys.version.split()[0]}, {found}")
    if wrong:
        yield Finding("packages", f"{'; '.join(wrong)}: pip install -e . -c constraints.txt", True)


def devices() -> Iterator[Finding]:
    """Each GPU with its memory and the dtypes in which it can multiply; NCCL, which several GPUs need."""
    count = torch.cuda.device_count()
    if not count and shutil.which("nvidia-smi") and "GPU " in output("nvidia-smi", "-L"):
        why = "has no CUDA" if torch.version.cuda is None else "cannot use it: is the driver too old?"
        yield Finding(
            "gpu", f"there is one, but torch {torch.__version__} {why}: see pytorch.org/get-started", True
        )
        return
    if not count:
        yield Finding("gpu", f"none: {torch.get_num_threads()} CPU threads, float32")
        yield Finding("nccl", "not needed without a GPU: processes talk through gloo")
        return
    for number in range(count):
        about = torch.cuda.get_device_properties(number)
        size = f"gpu {number}: {about.name}, {about.total_memory / GIB:.0f} GiB"
        works = [name for name in ("float32", "float16", "bfloat16") if multiplies(number, name)]
        if "float32" in works:
            yield Finding("gpu", f"{size}, {', '.join(works)}")
        else:
            yield Finding(
                "gpu", f"{size}: it cannot multiply: is it free, and does this torch support it?", True
            )
    has = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    name = f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}" if has else "no NCCL"
    advice = "" if has else ": several GPUs need it, install a torch with CUDA from pytorch.org"
    yield Finding("nccl", name + advice, broken=not has and count > 1)


def multiplies(device: int, dtype: str) -> bool:
    """Whether a product of two matrices of ones is right there."""
    with suppress(RuntimeError):
        ones = torch.ones(16, 16, dtype=getattr(torch, dtype), device=device)
        return bool((ones @ ones == 16).all())
    return False


def wandb() -> Iterator[Finding]:
    """In which mode `--wandb online` would log."""
    mode = os.environ.get("WANDB_MODE", "online")
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if mode != "online":
        yield Finding("wandb", f"WANDB_MODE={mode}: unset it for --wandb online")
    elif os.environ.get("WANDB_API_KEY") or in_netrc(url):
        yield Finding("wandb", "a key is set: --wandb online")
    else:
        yield Finding("wandb", "no key: `wandb login` for --wandb online; --wandb offline needs none")


def in_netrc(url: str) -> bool:
    """Whether the user's netrc file has an entry for the host, as `wandb login` writes it."""
    with suppress(OSError, NetrcParseError):
        path = os.environ.get("NETRC") or Path.home() / ".netrc"
        return urlsplit(url).hostname in netrc(path).hosts
    return False


def slurm() -> Iterator[Finding]:
    """The job that this is, or the partitions to which one can be submitted."""
    if job := os.environ.get("SLURM_JOB_ID"):
        tasks, nodes = (os.environ.get(f"SLURM_{name}", "1") for name in ("NTASKS", "NNODES"))
        yield Finding("slurm", f"job {job}: {tasks} tasks on {nodes} nodes")
    elif not shutil.which("sbatch"):
        yield Finding("slurm", "none here: start several machines with torchrun (configs/cluster/README.md)")
    else:
        partitions = output("sinfo", "--noheader", "--format=%P %a, %D nodes, time limit %l, %G")
        here = "; ".join(partitions.splitlines()) or "no answer of its controller: see sinfo"
        yield Finding("slurm", f"{output('sbatch', '--version').strip()}: {here}")


def output(*command: str) -> str:
    """What a command prints; nothing where it fails."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    return ""
