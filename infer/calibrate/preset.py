"""The preset that `python -m infer calibrate` writes, with how its numbers were measured."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from data.files import write_atomically
from infer.calibrate.measure import LIMITS, Calibrated
from infer.calibrate.options import Calibration
from infer.denoising.curves import SPACES


def write_preset(options: Calibration, result: Calibrated, preset: dict[str, Any]) -> str:
    """Write the preset, {class_path, init_args}, to `out`, below its comments; the text."""
    text, out = comments(options, result) + yaml.safe_dump(preset, sort_keys=False), Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda part: part.write_text(text))
    return text


def comments(options: Calibration, result: Calibrated) -> str:
    """The command that predicts with the preset, and how its numbers were measured, as YAML comments."""
    lines = [predict_command(options)]
    if "timestep" in result.settings:
        lines.append(
            f"timestep: first at which the mean difference of the {SPACES[options.watch]}s, without "
            f"guidance, has made {options.fall:g} of its fall, over {options.memorized!r}"
        )
    for name in LIMITS.keys() & result.settings.keys():
        rate = options.false_positive_rate
        lines.append(f"{name}: false-positive rate {rate:g}, over {options.ordinary!r}")
    lines += [f"{name}: {value:g}" for name, value in (result.settings | result.about).items()]
    return "".join(f"# {line}\n" for line in lines)


def predict_command(options: Calibration) -> str:
    """The command that predicts with the preset: the same model and schedule."""
    words = ["python", "-m", "infer", "predict", "--mitigation", options.out, *options.model.words()]
    prompts = options.memorized or options.ordinary
    return shlex.join([*words, "--prompts", prompts, "--out", str(Path(options.out).with_suffix(""))])
