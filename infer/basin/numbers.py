"""What `python -m infer basin` found, in numbers: basin.json, and a summary for the terminal."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from data.files import write_atomically
from infer.basin.options import HELD, Findings
from infer.metrics.similarity import COPY_THRESHOLD

NAMES = {"epsilon": "noise prediction", "model_output": "model output"}


def numbers(found: Findings) -> dict[str, Any]:
    """What basin.json holds; null where there is no number."""
    basin, index, key = found.basin, found.memorized.index(found.traced), found.traced.prompt_id
    trace: dict[str, Any] = {"prompt_id": key, "prompt": found.traced.prompt, "points": basin.points}
    for how in HELD:
        trace[how] = {
            "fired": {space: times[index] for space, times in found.fired["memorized", how].items()},
            "similarity": [found.similarity[how, found.place(t)][key] for t in basin.points],
            "curves": {name: rows[index] for name, rows in found.curves["memorized", how].items()},
        }
    groups: dict[str, Any] = {}
    for (group, how), curves in found.curves.items():
        groups.setdefault(group, {})[how] = {
            "fired": firing(found, group, how),
            "mean_curves": {name: rows.mean(0) for name, rows in curves.items()},
        }
    return plain({
        "settings": basin.model.identity() | {"opposite": basin.opposite, "seed": basin.seed},
        "descriptor": f"SSCD, {basin.sscd_protocol}" if basin.sscd else "correlation of 32x32 RGB",
        "memorized": len(found.memorized), "others": len(found.others), "others_left_out": found.left_out,
        "half_way_timestep": found.half_way(), "points": found.by_point().reset_index().to_dict("records"),
        "timesteps": found.timesteps, "groups": groups, "trace": trace,
    })  # fmt: skip


def firing(found: Findings, group: str, how: str) -> dict[str, dict[str, Any]]:
    """By watched space: the median timestep of the prompts that fired, and how many never did."""
    return {
        space: {"median": pd.Series(times).median(), "never": int(np.isnan(times).sum()), "of": len(times)}
        for space, times in found.fired[group, how].items()
    }


def plain(value: Any) -> Any:
    """For JSON: numbers rounded to 6 digits, null for NaN."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | np.ndarray):
        return [plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else round(float(value), 6)
    return value


def write_numbers(found: Findings) -> Path:
    path = Path(found.basin.out) / "basin.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_text(json.dumps(numbers(found), indent=1)))
    return path


def point_table(found: Findings) -> Table:
    """Similarity by point."""
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("t", "similarity", "p10", "p90", f"above {COPY_THRESHOLD:g}"):
        out.add_column(name, justify="right", no_wrap=True)
    names = {math.inf: "ordinary ", -math.inf: "never "}
    for t, row in found.by_point().iterrows():
        cells = (f"{row[key]:.3f}" for key in ("mean", "p10", "p90"))
        out.add_row(f"{names.get(found.place(t), '')}{t:g}", *cells, f"{row['share_above_05']:.0%}")
    return out


def firing_table(found: Findings) -> Table:
    """Median timestep at which the dynamic transition would fire, by what it watches."""
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("dynamic transition", no_wrap=True)
    for name in NAMES.values():
        out.add_column(name, justify="right", no_wrap=True)
        out.add_column("never", justify="right", no_wrap=True)
    for group, how in found.fired:
        row = [f"{len(getattr(found, group))} {group}, {'no' if how == 'none' else how} guidance"]
        for stats in firing(found, group, how).values():
            row += [f"{stats['median']:g}", str(stats["never"])]
        out.add_row(*row)
    return out


def told(found: Findings) -> str:
    """Where the basin ends, and what was left out, in lines."""
    half, failed = found.half_way(), int(found.by_point()["failed"].sum())
    where = "at none of the points" if half is None else f"by t = {half:g}"
    lines = [f"the mean similarity has fallen half way from ordinary guidance to none {where}"]
    if failed:
        lines.append(f"{failed} images FAILED (latents not finite): left out of the similarities")
    if found.left_out:
        lines.append(f"{found.left_out} other prompts were left out: their captions are memorized ones")
    return "\n".join(lines)
