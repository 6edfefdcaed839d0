"""Measure speed and check results on one GPU, in one run of some minutes.

  python -m tests.bench.gpu                     Stable Diffusion 2.1's shapes, random weights, 256 px, bf16
  python -m tests.bench.gpu training sampling   some parts; `model` always comes first
  python -m tests.bench.gpu --tiny              the same code on the CPU, in seconds: the numbers mean nothing

Each figure is printed as it comes, and all are in OUT/gpu.md. A part that fails, or takes longer than its
share of --minutes, says so in a line, and the next one begins. Exit code 1: a part failed, a check differs.
"""

import argparse
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from data.files import one_line
from infer.models.weights import no_warnings
from infer.predict.trainer import quiet_lightning
from tests.bench.gpu.checks import compiled, precision
from tests.bench.gpu.fits import free
from tests.bench.gpu.page import FAILED, Page, machine
from tests.bench.gpu.sampling import sampling
from tests.bench.gpu.setting import setting_of
from tests.bench.gpu.training import model, training

WARNINGS = "Dynamo detected a call|'pin_memory' argument is set"  # of what is meant to be
PARTS = {  # and their shares of the time; what takes longest, or may hang, comes last
    "model": (model, 0.15),
    "training": (training, 0.4),
    "sampling": (sampling, 0.15),
    "precision": (precision, 0.05),
    "compiled": (compiled, 0.25),
}


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="a model of 16 px, on the CPU")
    parser.add_argument("--minutes", type=float, default=8, help="of all parts")
    parser.add_argument("--batch_size", type=int, default=16, help="of a training step, and of sampling")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="folder; needs 5 GB in a run")
    given = parser.parse_args(args)
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if not given.tiny and not torch.cuda.is_available():
        parser.error("no GPU here: --tiny runs the same code on the CPU")
    quiet_lightning()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its notes on devices, for each fit
    given.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=given.out, prefix="gpu-") as folder:
        setting = setting_of(Path(folder).resolve(), given.tiny, given.batch_size)
        page = Page(given.out / "gpu.md", machine(setting.device))
        for name, (run, share) in PARTS.items():
            if name == "model" or not given.parts or name in given.parts:
                page.part = name
                seconds = 60 * given.minutes * share
                try:
                    with within(seconds), no_warnings(), warnings.catch_warnings():
                        warnings.filterwarnings("ignore", WARNINGS)
                        run(setting, seconds, page)
                except Exception as error:  # of any kind: the other parts still have their figures
                    page.say("", FAILED, f"{type(error).__name__}: {one_line(error)}")
                free()
    print(f"\n{page.table()}\n{page.path.resolve()}")
    return int(bool(page.bad))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """TimeoutError in the main thread after so many seconds; a call into a library ends first."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done in its {seconds:.0f} s: raise --minutes")

    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
