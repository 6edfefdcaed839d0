"""Results of the critical scale: a row per image, how they grow with exposure, and the files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL.Image import Image
from rich import box
from rich.table import Table

from data.files import write_atomically, write_json
from infer.basin.options import Basin
from infer.basin.summary import for_json
from infer.metrics.roc import auc, auc_interval

MEASURES = {  # of a row: what it is called in a table
    "sigma_caption": "with caption", "sigma_empty": "without", "log_gap": "log gap", "local_gap": "local gap",
}  # fmt: skip


def doubling(times_shown: float) -> int:
    """0 for 0, 1 for 1, 2 for 2 and 3, 3 for 4 to 7 ...; -1 for NaN, which is unknown."""
    return -1 if np.isnan(times_shown) else int(times_shown).bit_length()


@dataclass
class Scales:
    """Critical scales of images, in units of the latents.

    `found` has a row per image: id, caption, group, times_shown, sigma_caption, sigma_empty, evaluations.
    `local` has sigma_c by location, (N, H, W), for `caption` and `empty`.
    """

    options: Basin
    found: pd.DataFrame
    local: dict[str, np.ndarray]
    levels: list[float]
    images: list[Image]

    @cached_property
    def gaps(self) -> np.ndarray:
        """log sigma_c with the caption - log sigma_c without, by location: what the caption recalls."""
        return np.log(self.local["caption"]) - np.log(self.local["empty"])

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The rows with log_gap, of whole images, and local_gap, the mean of |gap| over the locations."""
        gap = np.log(self.found["sigma_caption"]) - np.log(self.found["sigma_empty"])
        return self.found.assign(log_gap=gap, local_gap=np.abs(self.gaps).mean((1, 2)))

    def by_exposure(self) -> pd.DataFrame:
        """Medians by group and doubling of the number of exposures."""
        columns = {"images": ("id", "size"), "least": ("times_shown", "min"), "most": ("times_shown", "max")}
        columns |= {name: (name, "median") for name in MEASURES}
        groups = self.rows.groupby(["group", self.rows["times_shown"].map(doubling)], sort=True)
        return groups.agg(**columns).reset_index(level=0).reset_index(drop=True)

    def judge(self, name: str) -> dict[str, float | None]:
        """How a measure grows with the times shown (rank correlation), and tells memorized images apart."""
        rows = self.rows[["group", "times_shown", name]].dropna(subset=[name])
        known = rows.dropna()
        correlation = known["times_shown"].rank().corr(known[name].rank()) if len(known) > 2 else np.nan
        memorized = rows["group"] == "memorized"
        groups = rows.loc[memorized, name].to_numpy(), rows.loc[~memorized, name].to_numpy()
        low, high = auc_interval(*groups) if all(map(len, groups)) else (np.nan, np.nan)
        area = auc(*groups) if all(map(len, groups)) else np.nan
        return {"rank_correlation": correlation, "auc": area, "auc_low": low, "auc_high": high}

    def notes(self) -> list[str]:
        """Images without a number, and those of which only a bound is known."""
        rows, notes = self.rows, []
        if failed := int(rows["sigma_caption"].isna().sum()):
            notes.append(f"{failed} images FAILED (denoised latents not finite): they have no critical scale")
        whole = rows[["sigma_caption", "sigma_empty"]]
        for end, word in ((self.levels[0], "below the lowest"), (self.levels[-1], "above the highest")):
            if count := int(np.isclose(whole, end, rtol=1e-5).any(axis=1).sum()):
                notes.append(f"{count} images have a critical scale {word} level, {end:.3g}: that is a bound")
        return notes

    def numbers(self) -> dict[str, Any]:
        """The content of critical_scale.json; null stands for undefined numbers."""
        scale = self.options.critical_scale
        names = ("iterations", "tolerance", "local_tolerance", "controls")
        return for_json({
            "settings": self.options.model.identity() | {name: getattr(scale, name) for name in names},
            "levels": self.levels, "groups": self.rows["group"].value_counts().to_dict(),
            "evaluations_per_image": float(self.rows["evaluations"].mean()),
            "measures": {name: self.judge(name) for name in MEASURES},
            "by_exposure": self.by_exposure().to_dict("records"), "notes": self.notes(),
        })  # fmt: skip

    def write(self) -> list[Path]:
        """Write critical_scale.parquet, .json and .npz, the maps by location; their paths."""
        folder = Path(self.options.out)
        folder.mkdir(parents=True, exist_ok=True)
        rows, numbers, maps = (folder / f"critical_scale.{kind}" for kind in ("parquet", "json", "npz"))
        write_atomically(rows, lambda part: self.rows.to_parquet(part, index=False))
        write_json(numbers, self.numbers())
        local = {f"sigma_{name}": sigma for name, sigma in self.local.items()}
        ids = self.rows["id"].to_numpy(str)
        write_atomically(maps, lambda part: np.savez_compressed(part, id=ids, **local))
        return [rows, numbers, maps]

    def table(self) -> Table:
        """Medians by exposure; AUC of memorized images, and rank correlation with the times shown."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("critical scale", no_wrap=True)
        for name in ("shown", "images", *MEASURES.values()):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.by_exposure().itertuples():
            ends = dict.fromkeys((row.least, row.most))
            shown = "?" if np.isnan(row.least) else "–".join(f"{end:g}" for end in ends)
            table.add_row(
                row.group, shown, str(row.images), *(f"{getattr(row, name):.3g}" for name in MEASURES)
            )
        judged = [self.judge(name) for name in MEASURES]
        for key, title in (("auc", "AUC"), ("rank_correlation", "rank correlation")):
            cells = ("–" if np.isnan(numbers[key]) else f"{numbers[key]:.3f}" for numbers in judged)
            table.add_row(title, "", "", *cells)
        return table
