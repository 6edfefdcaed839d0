"""Which prompts are memorized, by published detectors: scores, and how well they tell the groups apart."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jsonargparse.typing import OpenUnitInterval, PositiveInt
from tqdm import tqdm

from data.batches import in_batches
from data.files import write_atomically
from data.prompts import Prompt, load_prompts, same
from infer.basin.explore import spread
from infer.denoising.curves import Watch
from infer.denoising.hooks import GuidanceRule, Request
from infer.denoising.loop import Denoised, denoise
from infer.denoising.noise import sample_seed
from infer.denoising.sampling import encode
from infer.detect.attention import LAYER, CrossAttention, capturing, cross_attentions, ends_of_text
from infer.detect.detectors import all_steps, fall, first_step
from infer.metrics.aggregate import FEW
from infer.metrics.roc import auc, auc_interval, threshold
from infer.options import DenoiseOptions, device_of

# What each detector needs to be run.
DETECTORS = {
    "first_step": "1 step", "all_steps": "guided run", "fall": "unguided run",
    "attention_d": "guided run", "attention_e": "1 step",
}  # fmt: skip
RATES = (0.01, 0.05, 0.1)  # false-positive rates that are always told


@dataclass(kw_only=True)
class Detection(DenoiseOptions):
    """Whose prompts to score, and how.

    Args:
        memorized: prompts that are memorized (what --prompts takes); null: those that `run` duplicated.
        ordinary: prompts that are not; one that says the same as a memorized one, or as one before it, is
            left out. Null: no detector is judged.
        prompts: prompts of which it is not known, in place of both.
        limit: so many prompts of each group, spread evenly over all there are.
        samples_per_prompt: noises per prompt; its scores are the means over them.
        false_positive_rate: share of the ordinary prompts that a detector's threshold may flag.
        attention_layer: whose attention detector E looks at: which cross attention, counted from 1 in the
            order in which the UNet calls them; at most the last.
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
        if (steps := self.model.num_inference_steps) < 3:
            raise ValueError(f"a local minimum needs at least 3 steps, not {steps}")
        if Path(self.out).is_file():
            raise ValueError(f"out {self.out!r} is a file: name a folder")
        self.device = str(device_of(self.device))

    def groups(self) -> tuple[dict[bool | None, list[Prompt]], int]:
        """Prompts by whether they are memorized (None: not known); how many ordinary ones were left out.

        ValueError for a group with none.
        """
        if self.prompts:
            return {None: spread(load_prompts(self.prompts), self.limit or math.inf)}, 0
        memorized = load_prompts(self.memorized)
        found, left_out = {True: spread(memorized, self.limit or math.inf)}, 0
        if self.ordinary:
            known, distinct = {same(prompt.text) for prompt in memorized}, {}
            for prompt in (everything := load_prompts(self.ordinary)):
                if same(prompt.text) not in known:
                    distinct.setdefault(same(prompt.text), prompt)
            if not distinct:
                raise ValueError(f"all prompts of {self.ordinary!r} are memorized ones")
            left_out = len(everything) - len(distinct)
            found[False] = spread([*distinct.values()], self.limit or math.inf)
        return found, left_out

    def measure(self) -> "Detected":
        """Score the prompts, in a run with guidance and one without; ValueError where that is impossible."""
        groups, left_out = self.groups()
        asked = [(prompt, label) for label, prompts in groups.items() for prompt in prompts]
        requests = [
            Request(p.id, n, p.text, sample_seed(self.seed, p.id, n), p.negative)
            for p, _ in asked
            for n in range(self.samples_per_prompt)
        ]
        pipe, scale = self.model.load(torch.device(self.device)), self.model.guidance_scale
        side, steps = self.model.resolution_of(pipe), len(self.model.prepare(pipe, scale))
        attention = CrossAttention(steps, self.attention_layer) if cross_attentions(pipe.unet) else None
        started, guided, free = time.perf_counter(), [], []
        with capturing(pipe.unet, attention) if attention else nullcontext():
            rules = [Watch(), *([attention] if attention else [])]
            for batch, made in self.denoised(pipe, side, requests, scale, rules, "guided"):
                curves = made.difference_rms.numpy()
                scores = {"first_step": first_step(curves), "all_steps": all_steps(curves)}
                if attention:
                    scores |= attention.scores(ends_of_text(pipe, [request.prompt for request in batch]))
                guided.append(pd.DataFrame(scores | {"failed_guided": made.failed_at >= 0}))
        between = time.perf_counter()
        timesteps = self.model.prepare(pipe, 0.0)
        for _, made in self.denoised(pipe, side, requests, 0.0, [Watch()], "no guidance"):
            depth, fired = fall(made.difference_rms.numpy(), timesteps)
            free.append(
                pd.DataFrame({"fall": depth, "fired_timestep": fired, "failed_free": made.failed_at >= 0})
            )
        seconds = {"guided run": between - started, "unguided run": time.perf_counter() - between}
        samples = pd.concat(
            [pd.concat(guided, ignore_index=True), pd.concat(free, ignore_index=True)], axis=1
        )
        per_prompt = {name: passed / len(asked) for name, passed in seconds.items()}
        return Detected(self, by_prompt(asked, samples), left_out, per_prompt)

    def denoised(
        self, pipe: Any, side: int, requests: Sequence[Request], scale: float, rules: list[GuidanceRule],
        title: str,
    ) -> Iterator[tuple[list[Request], Denoised]]:  # fmt: skip
        """Batches of the requests with what came of them, under a bar over all steps."""
        device, model = torch.device(self.device), self.model
        steps = len(model.prepare(pipe, scale))
        total = math.ceil(len(requests) / self.batch_size) * steps
        with tqdm(desc=title, total=total, unit="step") as bar:
            for batch in in_batches(requests, self.batch_size):
                noise, generators, *embeddings = encode(pipe, batch, side, device, model.negative_prompt)
                bar.total -= steps  # the loop adds its own steps
                yield batch, denoise(
                    pipe.unet, pipe.scheduler, noise, *embeddings, scale, model.num_inference_steps, rules,
                    generators, bar,
                )  # fmt: skip


def by_prompt(asked: Sequence[tuple[Prompt, bool | None]], samples: pd.DataFrame) -> pd.DataFrame:
    """A row per prompt: means over its noises, without those whose latents or scores are not finite."""
    names = [name for name in DETECTORS if name in samples]
    sound = np.isfinite(samples[names]).all(axis=1) & ~(samples["failed_guided"] | samples["failed_free"])
    of = np.repeat(np.arange(len(asked)), len(samples) // len(asked))
    scores = samples.where(sound).groupby(of)[[*names, "fired_timestep"]].mean()
    rows = pd.DataFrame({
        "prompt_id": [prompt.id for prompt, _ in asked],
        "prompt": [prompt.text for prompt, _ in asked],
        "memorized": pd.array([label for _, label in asked], "boolean"),
        "samples": sound.groupby(of).sum(),
    })  # fmt: skip
    columns = ["first_step", "all_steps", "fall", "fired_timestep", "attention_d", "attention_e"]
    return rows.join(scores.reindex(columns=columns))


@dataclass
class Detected:
    """The scores, a row per prompt, and what is to be told about them."""

    detection: Detection
    rows: pd.DataFrame
    left_out: int  # ordinary prompts
    seconds: dict[str, float]  # per prompt, by run

    @property
    def names(self) -> list[str]:
        """The detectors that have scores."""
        return [name for name in DETECTORS if self.rows[name].notna().any()]

    def scores(self, name: str, memorized: bool | None) -> np.ndarray:
        """Of the prompts with this label; None: of those without one."""
        label = self.rows["memorized"]
        chosen = label.isna() if memorized is None else (label == memorized).fillna(False)
        return self.rows.loc[chosen, name].dropna().to_numpy()

    @property
    def judged(self) -> bool:
        """Whether both groups have scores."""
        return all(len(self.scores("all_steps", label)) for label in (True, False))

    def judge(self, name: str) -> dict[str, Any]:
        """How well the detector tells the groups apart; null where that cannot be said."""
        memorized, ordinary = self.scores(name, True), self.scores(name, False)
        found: dict[str, Any] = {"needs": DETECTORS[name]}
        if not self.judged:
            return found | {"auc": None}
        low, high = auc_interval(memorized, ordinary)
        cut = {rate: threshold(ordinary, rate) for rate in self.rates}
        caught = {rate: None if at is None else float((memorized > at).mean()) for rate, at in cut.items()}
        return found | {
            "auc": auc(memorized, ordinary),
            "auc_low": None if math.isnan(low) else low, "auc_high": None if math.isnan(high) else high,
            "tpr_at_fpr": {f"{rate:g}": share for rate, share in caught.items()},
            "threshold": cut[self.detection.false_positive_rate],
        }  # fmt: skip

    @property
    def rates(self) -> list[float]:
        return sorted({self.detection.false_positive_rate, *RATES})

    def counts(self) -> dict[str, int]:
        """Prompts with scores, by group."""
        groups = {"memorized": True, "ordinary": False, "unknown": None}
        return {group: len(self.scores("all_steps", label)) for group, label in groups.items()}

    def failed(self) -> list[str]:
        """Prompts with no noise that gave finite latents and scores."""
        return self.rows.loc[self.rows["samples"] == 0, "prompt_id"].tolist()

    def notes(self) -> list[str]:
        """What is missing, and why, in lines."""
        lines, ordinary = [], self.counts()["ordinary"]
        broken = int((self.detection.samples_per_prompt - self.rows["samples"]).sum())
        if broken:
            lines.append(f"{broken} noises FAILED (latents or scores not finite): left out of the means")
        if failed := self.failed():
            lines.append(f"{len(failed)} prompts FAILED with all of their noises: {', '.join(failed)}")
        if self.left_out:
            lines.append(
                f"{self.left_out} ordinary prompts were left out: they say the same as a memorized one, or "
                "as one before them"
            )
        if len(self.names) and "attention_d" not in self.names:
            lines.append(
                "no attention detectors: the UNet has no cross attention of diffusers' Attention class"
            )
        if not self.judged:
            lines.append("no detector is judged: that takes memorized prompts and ordinary ones")
            return lines
        if (few := min(self.counts()["memorized"], ordinary)) < FEW:
            lines.append(f"{few} prompts in a group: intervals over fewer than {FEW} are too narrow")
        for rate in self.rates:
            if threshold(self.scores("all_steps", False), rate) is None:
                lines.append(
                    f"TPR at {100 * rate:g} % FPR needs at least {math.ceil(1 / rate)} ordinary prompts, "
                    f"there are {ordinary}"
                )
        return lines

    def told(self) -> str:
        """The notes, and what a prompt takes."""
        spent = ", ".join(f"{seconds:.3g} for the {run}" for run, seconds in self.seconds.items())
        return "\n".join([*self.notes(), f"seconds per prompt: {spent}"])

    def numbers(self) -> dict[str, Any]:
        """What detection.json holds; null where there is no number."""
        settings = ("memorized", "ordinary", "prompts", "samples_per_prompt", "seed", "attention_layer")
        return {
            "settings": self.detection.model.identity()
            | {name: getattr(self.detection, name) for name in settings},
            "counts": self.counts(), "left_out": self.left_out, "failed": self.failed(),
            "seconds_per_prompt": self.seconds, "false_positive_rate": self.detection.false_positive_rate,
            "detectors": {name: self.judge(name) for name in self.names}, "notes": self.notes(),
        }  # fmt: skip

    def write(self) -> list[Path]:
        """detection.parquet, the scores, and detection.json, the numbers."""
        folder = Path(self.detection.out)
        folder.mkdir(parents=True, exist_ok=True)
        rows, about = folder / "detection.parquet", folder / "detection.json"
        write_atomically(rows, lambda part: self.rows.to_parquet(part, index=False))
        write_atomically(about, lambda part: part.write_text(json.dumps(self.numbers(), indent=1)))
        return [rows, about]
