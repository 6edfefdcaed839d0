"""Results of `python -m infer basin`: basin.json, and tables and lines for the terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL.Image import Image
from rich import box
from rich.table import Table

from data.files import write_json
from infer.basin.options import Basin
from infer.denoising.curves import SPACES
from infer.denoising.requests import Request
from infer.metrics.similarity import COPY_THRESHOLD, CORRELATION


def clamp_point(point: float, timesteps: Sequence[float]) -> float:
    """The point; inf if it means ordinary guidance, -inf if it means no guidance."""
    return math.inf if point >= timesteps[0] else -math.inf if point < timesteps[-1] else point


@dataclass
class Findings:
    """Everything that the figures and basin.json show.

    `images`, `similarity` and `failed` are by (before, clamped point), `curves` and `fired` by (group,
    before): the guidance before the point is "none" (scale 0) or "opposite", the group is "memorized" or
    "others". Opposite guidance before a finite point is for the traced request alone.
    """

    options: Basin
    requests: dict[str, list[Request]]
    traced: Request
    left_out: int  # other prompts that are memorized or repeated
    training: dict[str, Image]  # by prompt id
    timesteps: list[float]
    images: dict[tuple[str, float], dict[Request, Image]]
    similarity: dict[tuple[str, float], dict[Request, float]]  # to the training image; NaN: undefined
    failed: dict[tuple[str, float], list[Request]]  # latents not finite
    curves: dict[tuple[str, str], dict[str, np.ndarray]]  # by name: (N, steps)
    fired: dict[tuple[str, str], dict[str, np.ndarray]]  # by watched space: (N,) timesteps, NaN: never

    def key(self, before: str, point: float) -> tuple[str, float]:
        return before, clamp_point(point, self.timesteps)

    def label(self, point: float) -> str:
        """ "ordinary" or "never" for guidance that is not split in two; otherwise ""."""
        return {math.inf: "ordinary", -math.inf: "never"}.get(clamp_point(point, self.timesteps), "")

    def by_point(self) -> pd.DataFrame:
        """Similarity with no guidance before each point; undefined values are counted and left out."""
        rows = {}
        for point in self.options.points:
            key = self.key("none", point)
            values = pd.Series([*self.similarity[key].values()], dtype=float)
            defined, failed = values.dropna(), len(self.failed[key])
            rows[point] = {
                "mean": defined.mean(), "p10": defined.quantile(0.1), "p90": defined.quantile(0.9),
                "share_above_05": (defined > COPY_THRESHOLD).mean(), "failed": failed,
                "undefined": len(values) - len(defined) - failed,
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, "index").rename_axis("timestep")

    def half_way(self) -> float | None:
        """The largest point whose mean is at most half way down from ordinary to no guidance; None: none."""
        ends = [pd.Series([*self.similarity["none", end].values()]).mean() for end in (math.inf, -math.inf)]
        means = self.by_point()["mean"]
        return max(means.index[means <= sum(ends) / 2], default=None) if ends[0] > ends[1] else None

    def firing(self, group: str, before: str) -> dict[str, dict[str, Any]]:
        """By watched space: the median timestep of the requests that fired, and how many never did."""
        fired = {space: pd.Series(times) for space, times in self.fired[group, before].items()}
        return {
            space: {"median": times.median(), "never": int(times.isna().sum()), "of": len(times)}
            for space, times in fired.items()
        }

    def trace(self) -> dict[str, Any]:
        """The traced request's curves, firing timesteps and similarities."""
        row = self.requests["memorized"].index(self.traced)
        points = self.options.points
        trace = {"prompt_id": self.traced.prompt_id, "prompt": self.traced.prompt, "points": points}
        return trace | {
            before: {
                "fired": {space: times[row] for space, times in self.fired["memorized", before].items()},
                "similarity": [self.similarity[self.key(before, point)][self.traced] for point in points],
                "curves": {name: rows[row] for name, rows in self.curves["memorized", before].items()},
            }
            for before in ("none", "opposite")
        }

    def numbers(self) -> dict[str, Any]:
        """The content of basin.json; null stands for undefined numbers."""
        options, groups = self.options, {}
        for (group, before), curves in self.curves.items():
            groups.setdefault(group, {})[before] = {
                "fired": self.firing(group, before),
                "mean_curves": {name: pd.DataFrame(rows).mean().to_numpy() for name, rows in curves.items()},
            }
        names = ("opposite", "seed", "samples_per_prompt")
        return for_json({
            "settings": options.model.identity() | {name: getattr(options, name) for name in names},
            "descriptor": f"SSCD, {options.sscd_protocol}" if options.sscd else CORRELATION,
            "memorized": len(self.requests["memorized"]), "others": len(self.requests.get("others", [])),
            "others_left_out": self.left_out, "half_way_timestep": self.half_way(),
            "points": self.by_point().reset_index().to_dict("records"), "timesteps": self.timesteps,
            "groups": groups, "trace": self.trace(),
        })  # fmt: skip

    def write(self) -> Path:
        """Write basin.json; its path."""
        path = Path(self.options.out) / "basin.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.numbers())
        return path

    def point_table(self) -> Table:
        """Similarity by point."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("t", "similarity", "p10", "p90", f"above {COPY_THRESHOLD:g}"):
            table.add_column(name, justify="right", no_wrap=True)
        for point, row in self.by_point().iterrows():
            cells = (f"{row[key]:.3f}" for key in ("mean", "p10", "p90"))
            table.add_row(f"{self.label(point)} {point:g}", *cells, f"{row['share_above_05']:.0%}")
        return table

    def firing_table(self) -> Table:
        """Median timestep at which the dynamic transition fires, by watched space."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("dynamic transition", no_wrap=True)
        for name in SPACES.values():
            table.add_column(name, justify="right", no_wrap=True)
            table.add_column("never", justify="right", no_wrap=True)
        for group, before in self.fired:
            row = [f"{len(self.requests[group])} {group}, {'no' if before == 'none' else before} guidance"]
            for stats in self.firing(group, before).values():
                row += [f"{stats['median']:g}", str(stats["never"])]
            table.add_row(*row)
        return table

    def summary_lines(self) -> list[str]:
        """Where the basin ends, and which images and prompts were left out."""
        half, table = self.half_way(), self.by_point()
        where = "at none of the points" if half is None else f"by t = {half:g}"
        lines = [f"the mean similarity has fallen half way from ordinary guidance to none {where}"]
        if failed := int(table["failed"].sum()):
            lines.append(f"{failed} images FAILED (latents not finite): left out of the similarities")
        if undefined := int(table["undefined"].sum()):
            lines.append(f"{undefined} images of one colour have no similarity: left out")
        if self.left_out:
            lines.append(f"{self.left_out} other prompts were left out: memorized captions, or repeated")
        return lines


def for_json(value: Any) -> Any:
    """Numbers rounded to 6 digits, null for NaN, lists for arrays."""
    if isinstance(value, dict):
        return {key: for_json(entry) for key, entry in value.items()}
    if isinstance(value, list | np.ndarray):
        return [for_json(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else round(float(value), 6)
    return value
