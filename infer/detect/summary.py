"""Results of `python -m infer detect`: scores, how well they tell the groups apart, and the files."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from data.files import write_atomically, write_json
from infer.detect.detectors import DETECTORS
from infer.detect.options import Detection
from infer.detect.rates import rate_intervals, true_positive_rate
from infer.metrics.aggregate import FEW
from infer.metrics.roc import allowed_above, auc, auc_interval, threshold

RATES = (0.01, 0.03, 0.1)  # false-positive rates that are always reported
LABELS = {"memorized": True, "ordinary": False, "unknown": None}


@dataclass
class Detected:
    """Scores, a row per prompt, and what can be said about them."""

    options: Detection
    rows: pd.DataFrame
    left_out: int  # ordinary prompts
    seconds: dict[str, float]  # per prompt, by run
    steps: int  # of a run

    @property
    def names(self) -> list[str]:
        """The detectors that have scores."""
        return [name for name in self.options.detectors if self.rows[name].notna().any()]

    @property
    def rates(self) -> list[float]:
        return sorted({self.options.false_positive_rate, *RATES})

    @property
    def judged(self) -> bool:
        """Whether memorized and ordinary prompts have scores."""
        return all(self.counts()[group] for group in ("memorized", "ordinary"))

    def rows_of(self, group: str) -> pd.DataFrame:
        """The rows of a group: memorized, ordinary or unknown."""
        label = self.rows["memorized"]
        return self.rows[label.isna() if group == "unknown" else (label == LABELS[group]).fillna(False)]

    def scores(self, name: str, group: str) -> np.ndarray:
        """A detector's scores of a group."""
        return self.rows_of(group)[name].dropna().to_numpy()

    def counts(self) -> dict[str, int]:
        """Prompts with scores, by group."""
        return {group: int((self.rows_of(group)["samples"] > 0).sum()) for group in LABELS}

    def failed(self) -> list[str]:
        """Prompts without any noise that gave finite latents and scores."""
        return self.rows.loc[self.rows["samples"] == 0, "prompt_id"].tolist()

    def threshold(self, name: str) -> float | None:
        """The score that at most `false_positive_rate` of the ordinary prompts exceed; None: too few."""
        return threshold(self.scores(name, "ordinary"), self.options.false_positive_rate)

    def cost(self, name: str) -> dict[str, int]:
        """UNet rows per prompt of a detector alone, and how many of them are differentiated, too."""
        detector, noises = DETECTORS[name], self.options.samples_per_prompt
        return {
            "evaluations": noises * detector.evaluations(self.steps), "gradients": noises * detector.gradients
        }  # fmt: skip

    def judge(self, name: str) -> dict[str, Any]:
        """How well a detector tells the groups apart; None stands for what cannot be said."""
        memorized, ordinary = self.scores(name, "memorized"), self.scores(name, "ordinary")
        about = {"run": DETECTORS[name].run} | self.cost(name) | {"threshold": self.threshold(name)}
        if not self.judged:
            return about | {"auc": None}
        low, high = none_for_nan(auc_interval(memorized, ordinary))
        intervals = map(none_for_nan, rate_intervals(memorized, ordinary, self.rates))
        rates = {f"{rate:g}": true_positive_rate(memorized, ordinary, rate) for rate in self.rates}
        return about | {
            "auc": auc(memorized, ordinary), "auc_low": low, "auc_high": high, "tpr_at_fpr": rates,
            "tpr_interval_at_fpr": dict(zip(rates, intervals, strict=True)),
        }  # fmt: skip

    @cached_property
    def verdicts(self) -> dict[str, dict[str, Any]]:
        """`judge` of each detector: its intervals take a second."""
        return {name: self.judge(name) for name in self.names}

    def notes(self) -> list[str]:
        """What is missing, and why."""
        notes, counts = [], self.counts()
        if broken := int((self.options.samples_per_prompt - self.rows["samples"]).sum()):
            notes.append(f"{broken} noises FAILED (latents or scores not finite): left out of the means")
        if failed := self.failed():
            notes.append(f"{len(failed)} prompts FAILED with all of their noises: {', '.join(failed)}")
        if self.left_out:
            notes.append(f"{self.left_out} ordinary prompts were left out: memorized, ranked, or repeated")
        attention = {"attention_d", "attention_e"} & set(self.options.detectors)
        if self.names and attention and not attention & set(self.names):
            notes.append("no attention detectors: the UNet has no cross attention of diffusers' Attention")
        if not self.judged:
            return notes + self.missing_groups()
        if (few := min(counts["memorized"], counts["ordinary"])) < FEW:
            notes.append(f"{few} prompts in a group: intervals over fewer than {FEW} are too narrow")
        notes += [
            f"TPR at {100 * rate:g} % FPR needs at least {math.ceil(1 / rate)} ordinary prompts, "
            f"there are {counts['ordinary']}"
            for rate in self.rates
            if not allowed_above(counts["ordinary"], rate)
        ]
        return notes

    def missing_groups(self) -> list[str]:
        """What is not said without memorized or ordinary prompts."""
        counts, rate = self.counts(), self.options.false_positive_rate
        if not counts["unknown"]:
            return ["no detector is judged: give memorized prompts and ordinary ones"]
        if not counts["ordinary"]:
            return ["no thresholds: give ordinary prompts, such as --ordinary captions_val2017.json"]
        if not allowed_above(counts["ordinary"], rate):
            few = f"at least {math.ceil(1 / rate)} ordinary prompts, there are {counts['ordinary']}"
            return [f"no thresholds: {100 * rate:g} % of false alarms needs {few}"]
        return []

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
            "rank_by": options.prompts and options.rank_by, "seconds_per_prompt": self.seconds,
            "false_positive_rate": options.false_positive_rate,
            "detectors": self.verdicts, "notes": self.notes(),
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
        """How well each detector tells the groups apart, and its UNet rows (those with gradients).

        Without both groups its scores.
        """
        columns = ["AUC", "95 %", *(f"TPR@{100 * rate:g}%" for rate in self.rates)]
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("detector", no_wrap=True)
        for name in columns if self.judged else ("median", "highest", "threshold"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("UNet rows", justify="right", no_wrap=True)
        for name in self.names:
            cost = self.cost(name)
            gradients = f" ({cost['gradients']})" if cost["gradients"] else ""
            table.add_row(name, *self.cells(name), f"{cost['evaluations']}{gradients}")
        return table

    def cells(self, name: str) -> list[str]:
        """A detector's cells of the table."""
        if not self.judged:
            numbers = self.rows[name].median(), self.rows[name].max(), self.threshold(name)
            return ["–" if number is None else f"{number:.4g}" for number in numbers]
        numbers = self.verdicts[name]
        ends = numbers["auc_low"], numbers["auc_high"]
        interval = "–" if None in ends else "–".join(f"{end:.3f}" for end in ends)
        cells = [f"{numbers['auc']:.3f}", interval]
        for rate, share in numbers["tpr_at_fpr"].items():
            low, high = numbers["tpr_interval_at_fpr"][rate]
            spread = "" if low is None else f"\n{100 * low:.0f}–{100 * high:.0f}"
            cells.append("" if share is None else f"{share:.0%}{spread}")
        return cells


def none_for_nan(ends: tuple[float, float]) -> tuple[float | None, float | None]:
    return tuple(None if math.isnan(end) else end for end in ends)
