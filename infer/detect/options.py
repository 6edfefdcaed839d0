"""Options of `python -m infer detect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from data.batches import spread
from data.cli import warn_no_effect
from data.prompts import Prompt, load_ordinary, load_prompts
from infer.detect.attention import LAYER
from infer.detect.detectors import DETECTORS
from infer.options import DenoiseOptions, device_of


@dataclass(kw_only=True)
class Detection(DenoiseOptions):
    """Which prompts to score, and how.

    Args:
        memorized: memorized prompts (what --prompts takes); null: those that `run` duplicated, or none with
            `prompts`.
        ordinary: prompts that are not memorized; a prompt that equals a memorized or an earlier one is left
            out, and so is one of `prompts`. Null: no detector is judged.
        prompts: prompts of which it is not known whether they are memorized: they are ranked. With
            `ordinary`, thresholds say which of them are suspicious.
        detectors: those to compute; null: all. Runs that none of them needs are left out.
        rank_by: the detector that orders the ranking of `prompts`; null: the first of `detectors`.
        limit: at most this many prompts of each group, spread evenly over all of it.
        samples_per_prompt: noises per prompt; the scores of a prompt are the means over them.
        false_positive_rate: share of the ordinary prompts that a detector's threshold may flag.
        attention_layer: the cross attention of detector E, counted from 1 in the order in which the UNet
            calls them; at most the last.
        device: such as cpu or cuda:1; null: a GPU where there is one.
    """

    memorized: str | None = None
    ordinary: str | None = None
    prompts: str | None = None
    detectors: list[Literal[*DETECTORS]] | None = None
    rank_by: Literal[*DETECTORS] | None = None
    samples_per_prompt: PositiveInt = 1
    false_positive_rate: OpenUnitInterval = 0.01
    attention_layer: PositiveInt = LAYER
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = self.detectors or [*DETECTORS]
        self.detectors = [name for name in DETECTORS if name in chosen]
        if self.rank_by and not self.prompts:
            warn_no_effect("--rank_by", "only --prompts are ranked")
        if self.attention_layer != LAYER and "attention_e" not in self.detectors:
            warn_no_effect("--attention_layer", "attention_e is not among --detectors")
        self.rank_by = self.rank_by or self.detectors[0]
        if self.rank_by not in self.detectors:
            raise ValueError(f"--rank_by {self.rank_by} is not among --detectors {', '.join(chosen)}")
        if not self.prompts:
            self.memorized = self.memorized or self.run
            if not self.memorized:
                raise ValueError("give --memorized, --run with a training run folder, or --prompts")
        if self.model.num_inference_steps < 3:
            raise ValueError("a local minimum needs at least 3 steps: raise --model.num_inference_steps")
        if Path(self.out).is_file():
            raise ValueError(f"--out {self.out!r} is a file: name a folder")
        self.device = str(device_of(self.device))

    @property
    def runs(self) -> set[str]:
        """What the detectors need."""
        return {DETECTORS[name].run for name in self.detectors}

    def groups(self) -> tuple[dict[bool | None, list[Prompt]], int]:
        """Prompts by whether they are memorized (None: unknown), and how many ordinary ones were left out.

        ValueError for an empty group.
        """
        groups: dict[bool | None, list[Prompt]] = {}
        memorized, unknown = (load_prompts(file) if file else [] for file in (self.memorized, self.prompts))
        for label, prompts in ((None, unknown), (True, memorized)):
            if prompts:
                groups[label] = spread(prompts, self.limit)
        if not self.ordinary:
            return groups, 0
        ordinary, left_out = load_ordinary(self.ordinary, [*memorized, *unknown])
        return groups | {False: spread(ordinary, self.limit)}, left_out
