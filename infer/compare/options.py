"""Compare mitigations over the same prompts and seeds: one run folder each, one table, one page."""

import re
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from infer.metrics.columns import FIGURES
from infer.metrics.options import MeasureOptions
from infer.models.pipeline import check_pipeline
from infer.options import TrainerOptions, provenance_of
from infer.predict.module import Generate
from infer.predict.options import GenerateOptions

PAPER = ["none", "stp", "og_stp", "dtp", "og_dtp"]


class Job(NamedTuple):
    """One predict run: its folder's name, the model, the preset, and options in place of the preset's."""

    name: str
    pipeline: str
    preset: str
    options: dict[str, Any]


@dataclass(kw_only=True)
class Comparison(MeasureOptions, GenerateOptions):
    """What to compare.

    Args:
        base_pipeline: the untouched model it was finetuned from: a row of its own. (null: that of `run`.)
        mitigations: names of presets in configs/mitigation, or paths of YAML files.
        sweep: options to vary, by preset: {stp: {timestep: [400, 500, 600]}} in a file, stp.timestep=400,500
            on the command line; one run for each combination, next to the mitigations.
        published: figures to stand beside ours, by name and column: {stp: {similarity_top_p95: 0.2857}}.
        trainer: where it runs.
    """

    base_pipeline: str | None = None
    mitigations: list[str] = field(default_factory=lambda: list(PAPER))
    sweep: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)

    def __post_init__(self) -> None:
        if self.run:
            self.base_pipeline = self.base_pipeline or provenance_of(self.run)["pipeline"] or None
        GenerateOptions.__post_init__(self)
        MeasureOptions.__post_init__(self)
        if empty := [
            preset for preset, options in self.sweep.items() if not options or [] in options.values()
        ]:
            raise ValueError(f"sweep: nothing to sweep for {empty[0]!r}: give options with their values")
        names = [job.name for job in self.jobs()]
        if "base_model" in [job.name for job in self.jobs() if job.pipeline == self.model.pipeline]:
            raise ValueError("no mitigation can be called base_model: that is the untouched model's row")
        if len(set(names)) < len(names):
            raise ValueError(f"a run is named twice (a mitigation's file names its folder): {names}")
        if strange := set(self.published) - set(names):
            raise ValueError(f"published figures of {sorted(strange)}, which are none of {names}")
        if strange := {column for row in self.published.values() for column in row} - {*FIGURES}:
            raise ValueError(f"published: no column {min(strange)!r}; there are {', '.join(FIGURES)}")
        if self.base_pipeline:
            check_pipeline(self.base_pipeline)

    def jobs(self) -> list[Job]:
        """The mitigations, the combinations of the sweep, and the base model."""
        jobs = [Job(Path(preset).stem, self.model.pipeline, preset, {}) for preset in self.mitigations]
        for preset, options in self.sweep.items():
            for values in product(*options.values()):
                chosen = dict(zip(options, values, strict=True))
                name = "-".join([Path(preset).stem, *(f"{key}{value}" for key, value in chosen.items())])
                if not re.fullmatch(r"[\w.+-]+", name):
                    raise ValueError(f"sweep: {name!r} cannot name a folder")
                jobs.append(Job(name, self.model.pipeline, preset, chosen))
        if self.base_pipeline:
            jobs.append(Job("base_model", self.base_pipeline, "none", {}))
        return jobs

    def sweeps(self) -> list[dict[str, Any]]:
        """The runs of the sweep as lines: along each preset's first option, for each choice of the others."""
        lines: dict[str, dict[str, Any]] = {}
        for job in self.jobs():
            if job.options:
                (option, value), *others = job.options.items()
                preset = " ".join([Path(job.preset).stem, *(f"{key}={other}" for key, other in others)])
                line = lines.setdefault(preset, {"preset": preset, "option": option, "points": []})
                line["points"].append({"value": value, "mitigation": job.name})
        return [*lines.values()]

    def module(self, pipeline: str) -> Generate:
        """The model under test, or the untouched one: without revision, LoRA and single file's configs."""
        if pipeline == self.model.pipeline:
            return Generate(self.model)
        own = {"revision": None, "single_file_config": None, "lora": None, "lora_scale": 1.0}
        return Generate(replace(self.model, pipeline=pipeline, **own))
