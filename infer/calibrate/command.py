"""`python -m infer calibrate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.arguments import options_of
from infer.calibrate import plots
from infer.calibrate.measure import measure
from infer.calibrate.options import Calibration
from infer.calibrate.preset import write_preset


def calibrate(args: list[str], load_mitigation: Callable[[str], Any]) -> None:
    """Measure a static transition, or a gate or threshold at a false-positive rate; write a preset."""
    [options] = options_of([Calibration], calibrate, args)
    mitigation = load_mitigation(options.mitigation)
    preset = mitigation.identity()
    result = measure(options, mitigation)
    preset["init_args"] |= result.settings
    changed = type(mitigation)(**preset["init_args"])  # with the settings that the preset had before
    changed.check(result.timesteps, options.model.guidance_scale)
    figure = plots.save_figure(result, options.watch, Path(options.out).with_suffix(".svg"))
    print(f"{write_preset(options, result, preset)}preset: {options.out}, and why: {figure}")
