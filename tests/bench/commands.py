"""Rows of whole processes: from the command to its end."""

import subprocess
import sys
from itertools import count

from tests.bench.rows import Setting, Side, row
from tests.conftest import ROOT

number = count()
STOCK = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
seed = torch.Generator().manual_seed(0)
pipe("a red car", generator=seed, num_inference_steps=int(sys.argv[2])).images[0].save(sys.argv[3])
"""


def python(*args: object, code: int = 0) -> None:
    """Run python; RuntimeError if it ends with another code."""
    done = subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != code:
        raise RuntimeError(f"{args} ended with {done.returncode}: {done.stderr[-500:]}")


@row("infer predict --help", "python -c pass")
def help_page(setting: Setting) -> tuple[Side, Side]:
    return lambda: python("-m", "infer", "predict", "--help"), lambda: python("-c", "pass")


@row("infer predict with a wrong option (goal: 2 s)", "import torch")
def infer_error(setting: Setting) -> tuple[Side, Side]:
    command = ("-m", "infer", "predict", "--mitigation", "nope")
    return lambda: python(*command, code=1), lambda: python("-c", "import torch")


@row("train fit with a wrong option (goal: 2 s)", "import torch")
def train_error(setting: Setting) -> tuple[Side, Side]:
    command = ("-m", "train", "fit", "--bad", "1")
    return lambda: python(*command, code=2), lambda: python("-c", "import torch")


@row("infer predict, one image", "a script of diffusers")
def predict(setting: Setting) -> tuple[Side, Side]:
    """On the CPU."""
    given = ["--model.pipeline", setting.pipeline, "--model.num_inference_steps", setting.steps]
    given += ["--prompt", "a red car", "--trainer.accelerator", "cpu"]

    def ours() -> None:
        python("-m", "infer", "predict", *given, "--out", setting.folder / f"predict-{next(number)}")

    image = setting.folder / "stock.png"
    return ours, lambda: python("-c", STOCK, setting.pipeline, setting.steps, image)
