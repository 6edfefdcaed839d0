"""A mitigation's row in a comparison's table, from its scored images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from infer.metrics.bootstrap import STATISTICS, by_prompt, estimate
from infer.metrics.columns import LOST, MEASURES, measure_of, statistics_of
from infer.metrics.similarity import COPY_THRESHOLD

FEW, TAIL = 20, 100  # prompts below which intervals of means, and of 95th percentiles, are too narrow
MOST_LOST = 0.05  # share of images without similarity above which a mitigation is not ranked


def check_same_images(runs: Mapping[str, pd.DataFrame]) -> None:
    """Raise ValueError, with what differs, unless all runs have the same prompts, samples and seeds."""
    tables = {
        name: rows.set_index(["prompt_id", "sample"])[["prompt", "seed"]] for name, rows in runs.items()
    }
    first, reference = next(iter(tables.items()))
    for name, table in tables.items():
        both = f"{first} and {name} are of different"
        if len(lacking := reference.index.symmetric_difference(table.index, sort=False)):
            where = f"the first is {lacking[0][0]!r}, sample {lacking[0][1]}"
            raise ValueError(
                f"{both} prompts or samples: {len(lacking)} images are in one of them only, {where}"
            )
        for column in table:
            differ = table[column].reindex(reference.index) != reference[column]
            if differ.any():
                key, sample = differ.idxmax()
                one, other = (each[column][key, sample] for each in (reference, table))
                values = f"has '{one}' in {first} and '{other}' in {name}"
                raise ValueError(f"{both} {column}s: {key!r}, sample {sample}, {values}")


def memorized_prompts(unmitigated: pd.DataFrame) -> list[str]:
    """Prompts of which an image without mitigation is a copy of its training image."""
    highest = unmitigated.groupby("prompt_id")[measure_of(unmitigated)].max()
    return list(highest.index[highest > COPY_THRESHOLD])


def refused(rows: pd.DataFrame) -> pd.Series:
    """Images that a guard refused; runs without a guard have no such column."""
    return rows["refused"] if "refused" in rows else pd.Series(False, rows.index)


def counts(rows: pd.DataFrame) -> dict[str, int]:
    """How many images there are, and how many of them have no similarity, by reason."""
    lost = rows.assign(failed=rows["failed_step"].notna(), refused=refused(rows))[[*LOST]].sum()
    return {"images": len(rows), **lost.astype(int).to_dict()}


def summarize(
    name: str, rows: pd.DataFrame, summary: Mapping[str, Any], unmitigated: pd.DataFrame | None = None
) -> dict[str, Any]:
    """A row of the table: statistics with intervals and paired differences, costs, and counts.

    Args:
        name: label of the mitigation.
        rows: scored images.
        summary: the run's `summary.json`.
        unmitigated: scored images of the run without mitigation, of the same prompts and seeds.
    """
    out: dict[str, Any] = {"mitigation": name, "prompts": rows["prompt_id"].nunique(), **counts(rows)}
    for measure in filter(rows.columns.__contains__, MEASURES):
        statistics = {column: STATISTICS[name] for column, name in statistics_of(measure).items()}
        reference = None if unmitigated is None else by_prompt(unmitigated, measure)
        out |= estimate(by_prompt(rows, measure), statistics, reference)
    timesteps = rows["transition_timestep"].astype(float)
    has_transition = summary.get("never_fired") is not None
    has_detour = summary.get("without_alternative") is not None
    if "gradient_passes" in rows and rows["gradient_passes"].any():
        out["gradient_passes_mean"] = rows["gradient_passes"].mean()
    if "attempts" in rows:
        out["attempts_mean"] = rows["attempts"].mean()
    return out | {
        "nfe_mean": rows["nfe"].mean(),
        "seconds_per_image": rows["seconds"].mean(),
        "peak_memory_gib": summary.get("peak_memory_gib"),
        "fired_share": timesteps[~rows["gated"]].notna().mean() if has_transition else np.nan,
        "gated_share": rows["gated"].mean() if has_transition else np.nan,
        "transition_timestep_median": timesteps.median(),
        "without_alternative": rows["alternative_prompt"].isna().sum() if has_detour else np.nan,
    }


def can_win(table: pd.DataFrame) -> pd.Series:
    """Whether a row of the table may be called the best: nearly all of its images have a similarity."""
    lost = table.reindex(columns=LOST, fill_value=0).sum(axis=1)
    return (table["mitigation"] != "base_model") & (lost <= MOST_LOST * table["images"])


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are shown everywhere: `none`, the base model, then the others as they were given."""
    rank = table["mitigation"].map({"none": 0, "base_model": 1}).fillna(2)
    return table.iloc[rank.argsort(kind="stable")].reset_index(drop=True)


def notes_on(rows: pd.DataFrame) -> list[str]:
    """Notes on intervals over few prompts."""
    prompts = rows["prompt_id"][rows["similarity_own"].notna()].nunique()
    if prompts == 1:
        return ["One prompt with scores: there are no intervals, which are over prompts."]
    notes = {
        FEW: f"{prompts} prompts with scores: intervals over fewer than {FEW} are too narrow.",
        TAIL: f"{prompts} prompts with scores: intervals of 95th percentiles want {TAIL} or more.",
    }
    return [note for least, note in notes.items() if 1 < prompts < least]
