"""One row per mitigation from its scored images: what a comparison's table holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from infer.metrics.bootstrap import STATISTICS, by_prompt, estimate

MEMORIZED = 0.5  # a prompt is memorized if an image without mitigation is above this similarity
FEW, TAIL = 20, 100  # prompts, below which intervals of means, and of 95th percentiles, are too narrow
ALL, TOP, MEAN = tuple(STATISTICS), ("mean", "p95"), ("mean",)
MEASURES = {
    "similarity_own": ALL,
    "similarity_top": TOP,
    "sscd_own": ALL,
    "sscd_top": TOP,
    "clip_score": MEAN,
}


def column_of(measure: str, key: str) -> str:
    """`similarity_own_mean`, `sscd_top_p95_low`; shares are of the similarity to the own image."""
    if not key.startswith("share"):
        return f"{measure}_{key}"
    return key if measure == "similarity_own" else f"sscd_{key}"


FIGURES = [  # columns that others publish, too
    *(column_of(measure, name) for measure, names in MEASURES.items() for name in names),
    *("fid", "kid", "cmmd", "diversity_mean", "nfe_mean", "seconds_per_image"),
]


def check_same_images(runs: Mapping[str, pd.DataFrame]) -> None:
    """ValueError, with the difference, unless all runs are of the same prompts, samples and seeds."""
    asked = {
        name: {(row.prompt_id, row.sample): (row.prompt, row.seed) for row in rows.itertuples()}
        for name, rows in runs.items()
    }
    first, reference = next(iter(asked.items()))
    for name, images in asked.items():
        for here, there in ((first, name), (name, first)):
            lacking = [key for key in asked[here] if key not in asked[there]]
            if lacking:
                raise ValueError(
                    f"{here} and {there} are of different prompts or samples: {len(lacking)} images of "
                    f"{here} are not in {there}, the first is {lacking[0][0]!r}, sample {lacking[0][1]}"
                )
        for key, what in reference.items():
            if images[key] != what:
                kind, place = ("seeds", 1) if images[key][0] == what[0] else ("prompts", 0)
                raise ValueError(
                    f"{first} and {name} are of different {kind}: {key[0]!r}, sample {key[1]}, has "
                    f"{what[place]!r} in {first} and {images[key][place]!r} in {name}"
                )


def memorized_by(rows: pd.DataFrame) -> str:
    """The column that says whether an image is a copy: SSCD's where there is one."""
    return "sscd_own" if "sscd_own" in rows else "similarity_own"


def memorized_prompts(unmitigated: pd.DataFrame) -> list[str]:
    """Prompts of which an image without mitigation is above MEMORIZED to its training image."""
    highest = unmitigated.groupby("prompt_id")[memorized_by(unmitigated)].max()
    return list(highest.index[highest > MEMORIZED])


def summarize(
    name: str, rows: pd.DataFrame, told: Mapping[str, Any], unmitigated: pd.DataFrame | None = None
) -> dict[str, Any]:
    """A row of the table: statistics with intervals and paired differences, costs, and what went otherwise.

    Args:
        name: of the mitigation.
        rows: scored samples.
        told: what the run says of itself (`summary.json`).
        unmitigated: scored samples of the run without mitigation, of the same prompts and seeds.
    """
    out: dict[str, Any] = {"mitigation": name, "images": len(rows), "prompts": rows["prompt_id"].nunique()}
    for measure, wanted in MEASURES.items():
        if measure not in rows:
            continue
        statistics = {statistic: STATISTICS[statistic] for statistic in wanted}
        reference = None if unmitigated is None else by_prompt(unmitigated, measure)
        for key, value in estimate(by_prompt(rows, measure), statistics, reference).items():
            out[column_of(measure, key)] = value
    moved, waits = rows["transition_timestep"].astype(float), told.get("never_fired") is not None
    ungated = ~rows["gated"]
    return out | {
        "nfe_mean": rows["nfe"].mean(),
        "seconds_per_image": rows["seconds"].mean(),
        "peak_memory_gib": told.get("peak_memory_gib"),
        "fired_share": moved[ungated].notna().mean() if waits else np.nan,
        "gated_share": rows["gated"].mean() if waits else np.nan,
        "transition_timestep_median": moved.median(),
        "without_alternative": rows["alternative_prompt"].isna().sum() if has_detour(told) else np.nan,
        "failed": int(rows["failed_step"].notna().sum()),
        "unreadable": int(rows["unreadable"].sum()),
    }


def has_detour(told: Mapping[str, Any]) -> bool:
    return told.get("without_alternative") is not None


def notes_on(rows: pd.DataFrame) -> list[str]:
    """What so few prompts cannot show."""
    prompts = int(rows.groupby("prompt_id")["similarity_own"].any().sum()) if len(rows) else 0
    if prompts == 1:
        return ["One prompt with scores: there are no intervals, which are over prompts."]
    notes = []
    if 1 < prompts < FEW:
        notes.append(f"{prompts} prompts with scores: intervals over fewer than {FEW} are too narrow.")
    if 1 < prompts < TAIL:
        notes.append(f"{prompts} prompts with scores: intervals of 95th percentiles want {TAIL} or more.")
    return notes
