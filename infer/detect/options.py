"""Options of `python -m infer detect`."""

from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from data.prompts import Prompt, load_ordinary, load_prompts, spread
from infer.detect.attention import LAYER
from infer.options import DenoiseOptions, device_of


@dataclass(kw_only=True)
class Detection(DenoiseOptions):
    """Which prompts to score, and how.

    Args:
        memorized: memorized prompts (what --prompts takes); null: those that `run` duplicated.
        ordinary: prompts that are not memorized; a prompt that equals a memorized or an earlier one is left
            out. Null: no detector is judged.
        prompts: prompts without a known label, in place of both.
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
    samples_per_prompt: PositiveInt = 1
    false_positive_rate: OpenUnitInterval = 0.01
    attention_layer: PositiveInt = LAYER
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts and (self.memorized or self.ordinary):
            raise ValueError("give either --prompts, or --memorized and --ordinary")
        if not self.prompts:
            self.memorized = self.memorized or self.run
            if not self.memorized:
                raise ValueError("give --memorized, --run with a training run folder, or --prompts")
        if self.model.num_inference_steps < 3:
            raise ValueError("a local minimum needs at least 3 steps: raise --model.num_inference_steps")
        if Path(self.out).is_file():
            raise ValueError(f"--out {self.out!r} is a file: name a folder")
        self.device = str(device_of(self.device))

    def groups(self) -> tuple[dict[bool | None, list[Prompt]], int]:
        """Prompts by whether they are memorized (None: unknown), and how many ordinary ones were left out.

        ValueError for an empty group.
        """
        if self.prompts:
            return {None: spread(load_prompts(self.prompts), self.limit)}, 0
        memorized = load_prompts(self.memorized)
        groups, left_out = {True: spread(memorized, self.limit)}, 0
        if self.ordinary:
            ordinary, left_out = load_ordinary(self.ordinary, memorized)
            groups[False] = spread(ordinary, self.limit)
        return groups, left_out
