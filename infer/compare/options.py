"""Compare mitigations over the same prompts and seeds: one run folder each, one table, one page."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

from infer.compare.measures import MeasureOptions
from infer.denoising.hooks import GuidanceRule
from infer.metrics.columns import FIGURES
from infer.models.pipeline import check_pipeline
from infer.options import ModelOptions, TrainerOptions, provenance_of
from infer.predict.options import GenerateOptions

PAPER = ["none", "stp", "og_stp", "dtp", "og_dtp"]
BASE = "base_model"  # the label of the untouched model's row


class Job(NamedTuple):
    """One predict run. Its label names its folder; preset and options are where the mitigations come from.

    `single`: it is named by itself, and not only as a point of a sweep.
    """

    label: str
    model: ModelOptions
    mitigations: list[GuidanceRule]
    preset: str
    options: dict[str, Any]  # in place of the last preset's
    single: bool


@dataclass(kw_only=True)
class Comparison(MeasureOptions, GenerateOptions):
    """What to compare.

    Args:
        base_pipeline: the untouched model it was finetuned from: a row of its own. run: that of `run`; none
            or null: no such row.
        mitigations: names of presets in configs/mitigation, or paths of YAML files; a+b for both in one run.
        sweep: options to vary, by preset: {stp: {timestep: [400, 500, 600]}} in a file, stp.timestep=400,500
            on the command line; one run for each combination, next to the mitigations.
        published: figures to stand beside ours, by label and column: {stp: {similarity_top_p95: 0.2857}}.
        trainer: where it runs.
    """

    base_pipeline: str | None = "run"
    mitigations: list[str] = field(default_factory=lambda: list(PAPER))
    sweep: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)

    def __post_init__(self) -> None:
        provenance = provenance_of(self.run) if self.run else {}
        GenerateOptions.__post_init__(self)
        MeasureOptions.__post_init__(self)
        base_revision = None
        if self.base_pipeline == "run":
            self.base_pipeline, base_revision = provenance.get("pipeline"), provenance.get("revision")
        self.base_pipeline = None if self.base_pipeline in ("", "none") else self.base_pipeline
        if self.base_pipeline:
            check_pipeline(self.base_pipeline)
        own = {"single_file_config": None, "lora": None, "lora_scale": 1.0}
        self.base_model = self.base_pipeline and replace(
            self.model, pipeline=self.base_pipeline, revision=base_revision, **own
        )
        for preset, options in self.sweep.items():
            if not options or [] in options.values():
                raise ValueError(f"sweep: nothing to sweep for {preset!r}: give options with their values")
        if not (self.mitigations or self.sweep or self.base_pipeline):
            raise ValueError("give --mitigations or --sweep: there is nothing to compare")
        if unknown := {column for row in self.published.values() for column in row} - {*FIGURES}:
            raise ValueError(f"published: no column {min(unknown)!r}; there are {', '.join(FIGURES)}")

    def plan(self, load: Callable[[str, dict[str, Any]], tuple[str, list[GuidanceRule]]]) -> list[Job]:
        """The runs: mitigations, combinations of the sweep, and the base model; each label once.

        They are kept in `jobs`, too.

        Args:
            load: (preset, options in place of its own) -> label and mitigations.

        Raises ValueError for two runs of one label, a label that cannot name a folder, or published figures
        of no run.
        """
        wanted: list[tuple[str, dict[str, Any]]] = [(preset, {}) for preset in self.mitigations]
        for preset, options in self.sweep.items():
            choices = product(*options.values())
            wanted += [(preset, dict(zip(options, values, strict=True))) for values in choices]
        jobs: dict[str, Job] = {}
        for preset, options in wanted:
            label, rules = load(preset, options)
            job = jobs.setdefault(label, Job(label, self.model, rules, preset, options, not options))
            same = [rule.identity() for rule in job.mitigations] == [rule.identity() for rule in rules]
            if not same or label == BASE:
                raise ValueError(f"two runs are called {label!r}: rename a mitigation's file")
            if not re.fullmatch(r"(?!.*\.\.)[^/\\\0][^\\\0]{0,199}", label):
                raise ValueError(f"{label!r} cannot name a folder")
            if options and not job.options:  # the sweep's own point, which stands among the mitigations too
                jobs[label] = job._replace(options=options)
        if self.base_model:
            jobs[BASE] = Job(BASE, self.base_model, load("none", {})[1], "none", {}, True)
        if unknown := set(self.published) - set(jobs):
            raise ValueError(f"published figures of {sorted(unknown)}, which are none of {[*jobs]}")
        self.jobs = [*jobs.values()]
        return self.jobs

    def sweeps(self) -> list[dict[str, Any]]:
        """The runs of the sweep as lines: along each preset's first option, for each choice of the others."""
        lines: dict[str, dict[str, Any]] = {}
        for job in self.jobs:
            if job.options:
                (option, value), *others = job.options.items()
                preset = " ".join([job.preset, *(f"{key}={other}" for key, other in others)])
                line = lines.setdefault(preset, {"preset": preset, "option": option, "points": []})
                line["points"].append({"value": value, "mitigation": job.label})
        return [*lines.values()]
