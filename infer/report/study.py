"""What a report shows, read from a comparison folder; what an older folder lacks is left out."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infer.metrics.summary import MEMORIZED, memorized_prompts
from infer.report.colors import colors_of

LACKING = {  # what images have whose folder is older than the column
    "similarity_own": math.nan, "transition_timestep": math.nan, "gated": False, "failed_step": math.nan,
    "seconds": math.nan, "nfe": math.nan,
}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one option of a preset, in the order of its values."""

    preset: str
    option: str
    points: dict[str, Any]  # value by mitigation

    @property
    def name(self) -> str:
        return f"{self.preset}: {self.option}"


@dataclass(frozen=True)
class Study:
    """A comparison: tables by population ("all", "memorized"), and rows by mitigation."""

    folder: Path
    about: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    samples: dict[str, pd.DataFrame]
    traces: dict[str, pd.DataFrame]
    sweeps: list[Sweep]

    @property
    def names(self) -> list[str]:
        return [*self.samples]

    @cached_property
    def single(self) -> list[str]:
        """The mitigations that are no point of a sweep: `none` first, then the base model."""
        swept = {name for sweep in self.sweeps for name in sweep.points}
        first = {"none": 0, "base_model": 1}
        return sorted((name for name in self.names if name not in swept), key=lambda name: first.get(name, 2))

    @cached_property
    def colors(self) -> dict[str, str]:
        """Of mitigations and of sweeps; a sweep's points have its colour."""
        kept = [name for name in self.names if name in self.single]
        colors = colors_of([*kept, *(sweep.name for sweep in self.sweeps)])
        return colors | {name: colors[sweep.name] for sweep in self.sweeps for name in sweep.points}

    @cached_property
    def memorized(self) -> set[str] | None:
        """The prompts that the model reproduces without mitigation; None where nothing was run without."""
        if "none" not in self.samples or self.samples["none"]["similarity_own"].isna().all():
            return None
        return set(memorized_prompts(self.samples["none"].astype({"similarity_own": float})))

    @property
    def populations(self) -> dict[str, str]:
        """The tables' names in words."""
        about = self.subset
        count = f" ({about['prompts']} of {about['of']})" if {"prompts", "of"} <= about.keys() else ""
        above = f"{about.get('measure') or ''} above {self.threshold:g}".strip()
        words = {"all": "all prompts", "memorized": f"memorized without mitigation{count}, {above}"}
        return {name: words[name] for name in self.tables}

    @property
    def hints(self) -> dict[str, str]:
        """The populations, explained."""
        by = f" by {measure}" if (measure := self.subset.get("measure")) else ""
        memorized = (
            f"Prompts of which an image without mitigation has a similarity{by} above {self.threshold:g} "
            "to its training image."
        )
        return {name: memorized if name == "memorized" else "" for name in self.tables}

    @property
    def remarks(self) -> dict[str, list[str]]:
        """What is said of one population only, where there is anything."""
        notes = self.subset.get("notes") if "memorized" in self.tables else None
        return {"memorized": notes} if notes else {}

    @property
    def subset(self) -> dict[str, Any]:
        return self.about.get("memorized") or {}

    @property
    def threshold(self) -> float:
        return self.subset.get("threshold", MEMORIZED)


def read_study(folder: Path) -> Study:
    source, about = folder / "comparison.parquet", folder / "comparison.json"
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing: run `python -m infer compare` first")
    tables = {"all": read_table(source)}
    names = tables["all"]["mitigation"].tolist()
    if (subset := folder / "comparison_memorized.parquet").is_file():
        tables["memorized"] = read_table(subset)
    told = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    samples = {name: read_samples(inside(folder, f"{name}/samples.parquet")) for name in names}
    paths = {name: inside(folder, f"{name}/traces.parquet") for name in names}
    traces = {name: finite(pd.read_parquet(path)) for name, path in paths.items() if path.is_file()}
    return Study(folder, told, tables, samples, traces, sweeps_of(told.get("sweeps") or [], names))


def read_table(path: Path) -> pd.DataFrame:
    """Without the columns that hold nothing, unless a published figure can stand there."""
    table = pd.read_parquet(path).reset_index(drop=True)
    filled = table.dropna(axis="columns", how="all")
    for name in [name for name in filled if name.endswith("_published")]:
        ours = name.removesuffix("_published")
        if ours not in filled:
            filled = filled.assign(**{ours: pd.Series(float("nan"), filled.index)})
    return filled


def read_samples(path: Path) -> pd.DataFrame:
    """With all columns that the report relies on."""
    samples = finite(pd.read_parquet(path))
    lacking = {name: value for name, value in LACKING.items() if name not in samples}
    return samples.assign(**lacking)


def finite(frame: pd.DataFrame) -> pd.DataFrame:
    """Infinite numbers are missing: no mean, axis or JSON can hold them."""
    floats = frame.select_dtypes("floating").replace([np.inf, -np.inf], np.nan)
    return frame.assign(**{name: floats[name] for name in floats})


def sweeps_of(told: list[dict[str, Any]], names: list[str]) -> list[Sweep]:
    """The sweeps whose points were run: a single point is a mitigation like any other."""
    sweeps = []
    for line in told:
        points = {point["mitigation"]: point["value"] for point in line["points"]}
        points = {name: value for name, value in points.items() if name in names}
        if all(map(is_number, points.values())):
            points = dict(sorted(points.items(), key=lambda item: item[1]))
        if len(points) > 1:
            sweeps.append(Sweep(line["preset"], line["option"], points))
    return sweeps


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def inside(folder: Path, relative: str) -> Path:
    """The path that a data file names, which must not lead out of the folder that it belongs to."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{relative!r} points outside of {folder}")
    return path
