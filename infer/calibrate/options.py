"""Options of `python -m infer calibrate`."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from data.batches import spread
from data.cli import warn_no_effect
from data.prompts import Prompt, load_ordinary, load_prompts
from infer.denoising.requests import Request, requests_for
from infer.options import DenoiseOptions, device_of

# options, and the settings that they are for
USED_FOR = {"false_positive_rate": {"gate", "threshold"}, "fall": {"timestep"}, "watch": {"timestep"}}


@dataclass(kw_only=True)
class Calibration(DenoiseOptions):
    """What to calibrate, and with which prompts.

    The timestep of a static transition comes from the memorized prompts, without guidance; a gate, or the
    threshold of the first guess, from ordinary prompts, if there are some.

    Args:
        out: the preset to write, a YAML file for --mitigation; a figure is written next to it.
        mitigation: the preset to change: a name in configs/mitigation, or a path.
        ordinary: prompts that are not memorized, for the gate or threshold (what --prompts takes); memorized
            prompts among them are left out.
        false_positive_rate: share of the ordinary images that may count as memorized.
        memorized: memorized prompts; null: those that `run` duplicated.
        watch: the curve whose fall gives the static transition: the difference of the model outputs, as in
            the paper's Fig. 4, or of the noise predictions.
        fall: share of its fall after which the curve counts as fallen.
        limit: at most this many prompts of each group, spread evenly over all of it.
        samples_per_prompt: noises per prompt.
        device: such as cpu or cuda:1; null: a GPU where there is one.
    """

    out: str
    mitigation: str
    ordinary: str | None = None
    false_positive_rate: OpenUnitInterval = 0.05
    memorized: str | None = None
    watch: Literal["model_output", "epsilon"] = "model_output"
    fall: OpenUnitInterval = 0.5
    samples_per_prompt: PositiveInt = 1
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memorized = self.memorized or self.run
        if not self.out.endswith((".yaml", ".yml")) or Path(self.out).is_dir():
            raise ValueError(f"--out {self.out!r} is not a .yaml file: name the preset to write")
        self.device = str(device_of(self.device))

    def targets(self, settings: Collection[str]) -> list[str]:
        """Those of a mitigation's settings that the prompts can calibrate; ValueError for none."""
        if not settings:
            raise ValueError(f"nothing to calibrate in {self.mitigation!r}: try stp, dtp or first_guess")
        targets = [name for name in settings if self.ordinary or name == "timestep"]
        if not targets:
            raise ValueError(f"give --ordinary, for the {' and '.join(settings)} of {self.mitigation!r}")
        if "timestep" in targets and not self.memorized:
            raise ValueError("give --memorized or --run: a static transition needs memorized prompts")
        for option in fields(self):
            needs = USED_FOR.get(option.name)
            if needs and not needs & {*targets} and getattr(self, option.name) != option.default:
                warn_no_effect(f"--{option.name}", f"no {' or '.join(sorted(needs))} is calibrated")
        return targets

    def prompts(self) -> dict[str, list[Prompt]]:
        """All memorized prompts and all ordinary ones; ValueError without ordinary ones if requested."""
        memorized = load_prompts(self.memorized) if self.memorized else []
        ordinary = load_ordinary(self.ordinary, memorized)[0] if self.ordinary else []
        return {"memorized": memorized, "ordinary": ordinary}

    def requests(self, prompts: list[Prompt]) -> list[Request]:
        return requests_for(spread(prompts, self.limit), self.samples_per_prompt, self.seed)
