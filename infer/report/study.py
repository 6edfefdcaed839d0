"""What a report shows, read from a comparison folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data import table_files as files
from data.files import read_object
from infer.metrics.aggregate import in_order, memorized_prompts
from infer.plotting import colors_of
from infer.predict.run_folder import KEY, FileStems, inside, read_parquet

AGAIN = "run `python -m infer compare` again, which keeps the images"
SHOWN = (*KEY, "prompt", "image")  # columns without which there is no page
TRACED = (*KEY, "step", "timestep", "difference_rms", "guidance_scale")


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one option of a preset, in the order of its values."""

    preset: str
    option: str
    points: dict[str, Any]  # value by mitigation

    @property
    def name(self) -> str:
        return f"{self.preset}: {self.option}"

    @property
    def is_numeric(self) -> bool:
        return all(map(is_number, self.points.values()))


@dataclass(frozen=True)
class Study:
    """A comparison: tables by population ("all", "memorized"); samples and traces by mitigation."""

    folder: Path
    about: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    samples: dict[str, pd.DataFrame]
    traces: dict[str, pd.DataFrame]
    sweeps: list[Sweep]

    @cached_property
    def single(self) -> list[str]:
        """The mitigations that were named by themselves, or are no point of a sweep."""
        swept = {name for sweep in self.sweeps for name in sweep.points}
        only_points = swept - set(self.about.get("mitigations", []))
        return [name for name in self.samples if name not in only_points]

    @cached_property
    def stems(self) -> FileStems:
        """File name of each prompt's training image, without suffix."""
        return FileStems(key for rows in self.samples.values() for key in rows["prompt_id"])

    @cached_property
    def colors(self) -> dict[str, str]:
        """Of mitigations and of sweeps; what is a sweep's point only has the sweep's colour."""
        colors = colors_of([*self.single, *(sweep.name for sweep in self.sweeps)])
        return {name: colors[sweep.name] for sweep in self.sweeps for name in sweep.points} | colors

    @cached_property
    def memorized(self) -> set[str] | None:
        """The prompts that are copied without mitigation; None without scores of a run of `none`."""
        none = self.samples.get("none")
        if none is None or none["similarity_own"].isna().all():
            return None
        return set(memorized_prompts(none.astype({"similarity_own": float})))

    @property
    def populations(self) -> dict[str, dict[str, Any]]:
        """By table: its `name` in words, a `hint`, and `notes` on it alone."""
        out = {"all": {"name": "all prompts", "hint": "", "notes": []}}
        if "memorized" in self.tables:
            subset = self.about["memorized"]
            above = f"{subset['measure']} above {subset['threshold']:g}"
            out["memorized"] = {
                "name": f"memorized without mitigation ({subset['prompts']} of {subset['of']}), {above}",
                "hint": f"An image without mitigation is a copy of the prompt's training image: {above}.",
                "notes": subset["notes"],
            }
        return out


def read_study(folder: Path) -> Study:
    source, about = folder / "comparison.parquet", folder / "comparison.json"
    if not source.is_file() or not about.is_file():
        raise FileNotFoundError(f"{folder} holds no comparison: run `python -m infer compare` first")
    described = read_about(about)
    tables = {"all": read_table(source)}
    names = tables["all"]["mitigation"].tolist()
    if (subset := folder / "comparison_memorized.parquet").is_file():
        tables["memorized"] = read_table(subset)
    paths = {name: inside(folder, f"{name}/samples.parquet") for name in names}
    samples = {name: finite(read_parquet(path, SHOWN)) for name, path in paths.items()}
    paths = {name: inside(folder, f"{name}/traces.parquet") for name in names}
    columns = [*TRACED]  # a run's traces are the largest of all tables: what is not shown stays on the disk
    traces = {
        name: finite(read_parquet(path, TRACED, columns)) for name, path in paths.items() if path.is_file()
    }
    return Study(folder, described, tables, samples, traces, sweeps_of(described["sweeps"], names))


def read_about(path: Path) -> dict[str, Any]:
    """What the comparison says of itself; ValueError for a file that is cut, or another's."""
    about = read_object(path)
    if missing := [key for key in ("title", "notes", "sweeps") if key not in about]:
        raise ValueError(f"{path} cannot be read, or lacks its {missing[0]}: {AGAIN}")
    return about


def read_table(path: Path) -> pd.DataFrame:
    """The table without empty columns, except those that have a published figure."""
    table = in_order(files.read_table(path, ["mitigation"], AGAIN))
    filled = table.dropna(axis="columns", how="all")
    published = [name.removesuffix("_published") for name in filled if name.endswith("_published")]
    return filled.assign(**{name: np.nan for name in published if name not in filled})


def finite(frame: pd.DataFrame) -> pd.DataFrame:
    """NaN for infinite numbers, which no mean, axis or JSON can hold."""
    floats = frame.select_dtypes("floating").replace([np.inf, -np.inf], np.nan)
    return frame.assign(**{name: floats[name] for name in floats})


def sweeps_of(described: list[dict[str, Any]], names: list[str]) -> list[Sweep]:
    """The sweeps with more than one point; a single point is a mitigation like any other."""
    sweeps = []
    for line in described:
        points = {p["mitigation"]: p["value"] for p in line["points"] if p["mitigation"] in names}
        if all(map(is_number, points.values())):
            points = dict(sorted(points.items(), key=lambda point: point[1]))
        if len(points) > 1:
            sweeps.append(Sweep(line["preset"], line["option"], points))
    return sweeps


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
