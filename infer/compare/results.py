"""Results of predict runs of the same images: scores, a table, and notes on what the numbers rest on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from data.files import read_object, write_json
from infer.compare.measures import MeasureOptions, Measures
from infer.compare.score_images import read_samples, score_folder, was_scored
from infer.metrics.aggregate import (
    MOST_LOST,
    can_win,
    check_same_images,
    counts,
    memorized_prompts,
    notes_on,
    summarize,
)  # fmt: skip
from infer.metrics.columns import LOST, measure_of
from infer.metrics.distances import Quality, diversity
from infer.metrics.similarity import COPY_THRESHOLD, CORRELATION
from infer.metrics.training_set import TrainingSet, not_searched
from infer.predict.run_folder import KEY


@dataclass
class Measured:
    """Scored runs by mitigation: their rows, summaries, and features of their scored images."""

    training: TrainingSet
    rows: dict[str, pd.DataFrame]
    summaries: dict[str, Mapping[str, Any]]
    quality: Quality | None
    features: dict[str, Tensor]
    too_long: int  # prompts of which CLIP reads the beginning only

    def notes(self) -> list[str]:
        """What the numbers rest on, and what they do not show."""
        first = next(iter(self.rows.values()))
        without = sum(not own for own in self.training.own(first.drop_duplicates("prompt_id")))
        notes, quality = notes_on(first), self.quality
        if without:
            notes.append(f"{without} of the prompts have no image of their own in the training set.")
        if renamed := self.training.renamed(first):
            notes.append(
                f"{renamed} of the prompts are measured against the training image of their id, which has "
                "ANOTHER CAPTION: are these ids of the same set?"
            )
        if left_out := self.training.left_out():
            notes.append(not_searched(left_out))
        if self.too_long:
            notes.append(
                f"{self.too_long} of the prompts are longer than CLIP reads: their beginning is scored."
            )
        notes += [*self.lost(), *self.same_images()]
        if quality:
            notes.append(
                f"FID, KID and CMMD are against all {len(quality.reference):,} training images, also those "
                "of no prompt; images of one colour count."
            )
            notes += quality.notes
        return notes

    def lost(self) -> list[str]:
        """Notes on images without similarity."""
        table = pd.DataFrame([{"mitigation": name, **counts(rows)} for name, rows in self.rows.items()])
        words = {"failed": "failed", "unreadable": "unreadable", "undefined": "of one colour"}
        words["refused"] = "refused by the guard"
        notes = [
            f"Left out of the similarity, {words[name]}: "
            + ", ".join(f"{row[name]} of {row['images']} images of {row['mitigation']}" for row in lines)
            for name in LOST
            if (lines := table[table[name] > 0].to_dict("records"))
        ]
        unranked = table["mitigation"][~can_win(table) & (table["mitigation"] != "base_model")]
        if len(unranked):
            names = ", ".join(unranked)
            notes.append(f"Not ranked, as more than {MOST_LOST:.0%} of the images are left out: {names}")
        return notes

    def same_images(self) -> list[str]:
        """Notes on mitigations whose images are the same, by their scores."""
        groups: dict[bytes, list[str]] = {}
        for name, rows in self.rows.items():
            scores = rows.sort_values(KEY)[["similarity_top", "clip_score"]].to_numpy(float)
            if not np.isnan(scores).all():
                groups.setdefault(scores.round(4).tobytes(), []).append(name)
        return [
            f"The same images under {' and '.join(names)}: their settings take effect at the same step."
            for names in groups.values()
            if len(names) > 1
        ]

    def memorized(self) -> dict[str, Any] | None:
        """The prompts that are copied without mitigation, and how they were chosen; None without that run."""
        if "none" not in self.rows:
            return None
        none = self.rows["none"]
        chosen = memorized_prompts(none)
        return {
            "threshold": COPY_THRESHOLD,
            "measure": "SSCD" if measure_of(none) == "sscd_own" else CORRELATION,
            "prompts": len(chosen),
            "of": int(none["prompt_id"].nunique()),
            "notes": [
                "Chosen by the images of none that are compared here: part of each fall is regression to the "
                "mean.",
                *notes_on(none[none["prompt_id"].isin(chosen)]),
            ],
        }

    def table(self, prompts: Sequence[str] | None = None) -> pd.DataFrame:
        """A row per run, of these prompts or all; differences are to the run called none.

        FID, KID, CMMD and diversity are given for all prompts only: over fewer images they are other numbers.
        """
        kept = self.rows
        if prompts is not None:
            kept = {name: rows[rows["prompt_id"].isin(prompts)] for name, rows in kept.items()}
        lines = []
        for name, rows in kept.items():
            line = summarize(name, rows, self.summaries[name], None if name == "none" else kept.get("none"))
            if self.quality and prompts is None:
                line |= self.quality.measure(self.features[name])
                ids = list(rows["prompt_id"][was_scored(rows)])
                line["diversity_mean"] = diversity(self.features[name], ids)
            lines.append(line)
        return pd.DataFrame(lines)


def measure(
    options: MeasureOptions, measures: Measures, folders: dict[str, Path], resolution: int
) -> Measured:
    """Score run folders of the same images, else ValueError; ValueError where no image has a score.

    Scores are written to each run's `samples.parquet`, and to `scores.json` what they were measured by.
    """
    columns = [*KEY, "prompt", "seed"]
    samples = {name: read_samples(folder, columns) for name, folder in folders.items()}
    check_same_images(samples)
    prompts = next(iter(samples.values()))["prompt"].unique()
    del samples
    extract = measures.features
    training = TrainingSet(options.training_images(), resolution, measures.descriptors, options.cache)
    scored = {
        name: score_folder(
            path, training, measures.clip, extract, measures.objects, anywhere=options.anywhere
        )
        for name, path in folders.items()
    }
    if not any(was_scored(rows).any() for rows, _ in scored.values()):
        raise ValueError(f"no image of {', '.join(folders)} can be scored: each failed or cannot be read")
    for folder in folders.values():
        write_json(folder / "scores.json", options.measured_by() | {"training": options.training})
    summaries = {name: read_object(path / "summary.json") for name, path in folders.items()}
    quality = Quality(extract.name, training.embeddings(extract)) if extract else None
    too_long = sum(map(measures.clip.towers.too_long, prompts))
    rows = {name: scored_rows for name, (scored_rows, _) in scored.items()}
    features = {name: of_images for name, (_, of_images) in scored.items()}
    return Measured(training, rows, summaries, quality, features, too_long)
