"""Results of `python -m infer detect`: scores, how well they tell the groups apart, and the files."""

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from data.files import write_atomically, write_json
from infer.detect.detectors import DETECTORS
from infer.detect.options import Detection
from infer.metrics.aggregate import FEW
from infer.metrics.roc import auc, auc_interval, threshold

RATES = (0.01, 0.05, 0.1)  # false-positive rates that are always reported
LABELS = {"memorized": True, "ordinary": False, "unknown": None}


@dataclass
class Detected:
    """Scores, a row per prompt, and what can be said about them."""

    options: Detection
    rows: pd.DataFrame
    left_out: int  # ordinary prompts
    seconds: dict[str, float]  # per prompt, by run

    @property
    def names(self) -> list[str]:
        """The detectors that have scores."""
        return [name for name in DETECTORS if self.rows[name].notna().any()]

    @property
    def rates(self) -> list[float]:
        return sorted({self.options.false_positive_rate, *RATES})

    @property
    def judged(self) -> bool:
        """Whether memorized and ordinary prompts have scores."""
        return all(self.counts()[group] for group in ("memorized", "ordinary"))

    def scores(self, name: str, group: str) -> np.ndarray:
        """A detector's scores of a group: memorized, ordinary or unknown."""
        label = self.rows["memorized"]
        chosen = label.isna() if group == "unknown" else (label == LABELS[group]).fillna(False)
        return self.rows.loc[chosen, name].dropna().to_numpy()

    def counts(self) -> dict[str, int]:
        """Prompts with scores, by group."""
        return {group: len(self.scores("all_steps", group)) for group in LABELS}

    def failed(self) -> list[str]:
        """Prompts without any noise that gave finite latents and scores."""
        return self.rows.loc[self.rows["samples"] == 0, "prompt_id"].tolist()

    def judge(self, name: str) -> dict[str, Any]:
        """How well a detector tells the groups apart; None stands for what cannot be said."""
        memorized, ordinary = self.scores(name, "memorized"), self.scores(name, "ordinary")
        if not self.judged:
            return {"needs": DETECTORS[name].needs, "auc": None}
        low, high = (None if math.isnan(end) else end for end in auc_interval(memorized, ordinary))
        cuts = {rate: threshold(ordinary, rate) for rate in self.rates}
        return {
            "needs": DETECTORS[name].needs, "auc": auc(memorized, ordinary), "auc_low": low, "auc_high": high,
            "tpr_at_fpr": {
                f"{rate:g}": None if cut is None else float((memorized > cut).mean())
                for rate, cut in cuts.items()
            },
            "threshold": cuts[self.options.false_positive_rate],
        }  # fmt: skip

    def notes(self) -> list[str]:
        """What is missing, and why."""
        notes, counts = [], self.counts()
        if broken := int((self.options.samples_per_prompt - self.rows["samples"]).sum()):
            notes.append(f"{broken} noises FAILED (latents or scores not finite): left out of the means")
        if failed := self.failed():
            notes.append(f"{len(failed)} prompts FAILED with all of their noises: {', '.join(failed)}")
        if self.left_out:
            notes.append(f"{self.left_out} ordinary prompts were left out: memorized, or repeated")
        if self.names and "attention_d" not in self.names:
            notes.append("no attention detectors: the UNet has no cross attention of diffusers' Attention")
        if not self.judged:
            return [*notes, "no detector is judged: give memorized prompts and ordinary ones"]
        if (few := min(counts["memorized"], counts["ordinary"])) < FEW:
            notes.append(f"{few} prompts in a group: intervals over fewer than {FEW} are too narrow")
        notes += [
            f"TPR at {100 * rate:g} % FPR needs at least {math.ceil(1 / rate)} ordinary prompts, "
            f"there are {counts['ordinary']}"
            for rate in self.rates
            if threshold(self.scores("all_steps", "ordinary"), rate) is None
        ]
        return notes

    def summary_lines(self) -> list[str]:
        """The notes, and the time per prompt."""
        seconds = ", ".join(f"{seconds:.3g} for the {run}" for run, seconds in self.seconds.items())
        return [*self.notes(), f"seconds per prompt: {seconds}"]

    def numbers(self) -> dict[str, Any]:
        """The content of detection.json; null stands for undefined numbers."""
        options = self.options
        names = ("memorized", "ordinary", "prompts", "samples_per_prompt", "seed", "attention_layer")
        return {
            "settings": options.model.identity() | {name: getattr(options, name) for name in names},
            "counts": self.counts(), "left_out": self.left_out, "failed": self.failed(),
            "seconds_per_prompt": self.seconds, "false_positive_rate": options.false_positive_rate,
            "detectors": {name: self.judge(name) for name in self.names}, "notes": self.notes(),
        }  # fmt: skip

    def write(self) -> list[Path]:
        """Write the scores to detection.parquet and the numbers to detection.json; their paths."""
        folder = Path(self.options.out)
        folder.mkdir(parents=True, exist_ok=True)
        scores, numbers = folder / "detection.parquet", folder / "detection.json"
        write_atomically(scores, lambda part: self.rows.to_parquet(part, index=False))
        write_json(numbers, self.numbers())
        return [scores, numbers]

    def table(self) -> Table:
        """How well each detector tells the groups apart; without both groups, the range of its scores."""
        columns = ["AUC", "95 %", *(f"TPR@{100 * rate:g}%" for rate in self.rates)]
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("detector", "needs"):
            table.add_column(name, no_wrap=True)
        for name in columns if self.judged else ("median", "highest"):
            table.add_column(name, justify="right", no_wrap=True)
        if not self.judged:
            table.add_column("of the prompt", overflow="fold")
        for name in self.names:
            table.add_row(name, DETECTORS[name].needs, *self.cells(name))
        return table

    def cells(self, name: str) -> list[str]:
        """A detector's cells of the table."""
        if not self.judged:
            top = self.rows.loc[self.rows[name].idxmax()]
            prompt = textwrap.shorten(top["prompt"], 60, placeholder=" …")
            return [f"{self.rows[name].median():.4g}", f"{top[name]:.4g}", prompt]
        numbers = self.judge(name)
        ends = numbers["auc_low"], numbers["auc_high"]
        interval = "–" if None in ends else "–".join(f"{end:.3f}" for end in ends)
        shares = ("" if share is None else f"{share:.0%}" for share in numbers["tpr_at_fpr"].values())
        return [f"{numbers['auc']:.3f}", interval, *shares]
