"""Measure predict runs of the same images: scores, a table, and notes on what its numbers rest on."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from data.captioned import CaptionedImages
from data.files import redacted, write_atomically
from infer.compare.options import Comparison
from infer.metrics.aggregate import (
    MOST_LOST,
    can_win,
    check_same_images,
    counts,
    memorized_prompts,
    notes_on,
    summarize,
)
from infer.metrics.clip_score import ClipScore, check_clip
from infer.metrics.columns import LOST, measure_of
from infer.metrics.distances import Extractor, Quality, check_features, diversity, extractor
from infer.metrics.options import MeasureOptions
from infer.metrics.score_images import read_samples, score_folder, was_scored
from infer.metrics.similarity import COPY_THRESHOLD, CORRELATION, Descriptor, pixel_descriptor
from infer.metrics.sscd import check_sscd, sscd_descriptor
from infer.metrics.training_set import TrainingSet
from infer.predict.run_folder import KEY, save_image


@dataclass
class Measures:
    """The models that images are measured by."""

    descriptors: dict[str, Descriptor]
    clip: ClipScore
    features: Extractor | None  # of FID, KID and CMMD

    @staticmethod
    def check(options: MeasureOptions) -> None:
        """Raise ValueError or FileNotFoundError for a model that cannot be loaded; loads none."""
        check_clip(options.clip)
        check_features(options.features)
        if options.sscd:
            check_sscd(options.sscd, options.sscd_sha256)

    @classmethod
    def load(cls, options: MeasureOptions, device: str) -> "Measures":
        descriptors = {"similarity": pixel_descriptor}
        if options.sscd:
            descriptors["sscd"] = sscd_descriptor(
                options.sscd, options.sscd_protocol, options.sscd_sha256, device
            )
        clip = ClipScore(options.clip, device)
        return cls(descriptors, clip, extractor(options.features, clip, device) if options.features else None)


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
        each = first.drop_duplicates("prompt_id")
        without = sum(not own for own in self.training.own(each))
        notes = notes_on(first)
        if without:
            notes.append(f"{without} of the prompts have no image of their own in the training set.")
        if renamed := self.training.renamed(first):
            notes.append(
                f"{renamed} of the prompts are measured against the training image of their id, which has "
                "ANOTHER CAPTION: are these ids of the same set?"
            )
        if left_out := self.training.left_out():
            notes.append(
                f"{len(left_out)} training images are not searched, they cannot be read or have one colour: "
                f"{', '.join(left_out[:3])}{', ...' if len(left_out) > 3 else ''}."
            )
        if self.too_long:
            notes.append(
                f"{self.too_long} of the prompts are longer than CLIP reads: their beginning is scored."
            )
        notes += [*self.lost(), *self.same_images()]
        if self.quality:
            notes.append(
                f"FID, KID and CMMD are against all {len(self.quality.reference):,} training images, also "
                "those of no prompt; images of one colour count."
            )
            notes += self.quality.notes
        return notes

    def lost(self) -> list[str]:
        """Notes on images without similarity."""
        table = pd.DataFrame([{"mitigation": name, **counts(rows)} for name, rows in self.rows.items()])
        words = {"failed": "failed", "unreadable": "unreadable", "undefined": "of one colour"}
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
                "Chosen by the images of none that are compared here: part of each fall is regression "
                "to the mean.",
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
    measures: Measures, images: CaptionedImages, folders: dict[str, Path], resolution: int, cache: str
) -> Measured:
    """Score the run folders (in `samples.parquet`); ValueError if they are not of the same images."""
    samples = {name: read_samples(folder) for name, folder in folders.items()}
    check_same_images(samples)
    training = TrainingSet(images, resolution, measures.descriptors, cache)
    extract = measures.features
    scored = {
        name: score_folder(folder, training, measures.clip, extract) for name, folder in folders.items()
    }
    summaries = {name: json.loads((path / "summary.json").read_text()) for name, path in folders.items()}
    quality = Quality(extract.name, training.embeddings(extract)) if extract else None
    prompts = next(iter(samples.values()))["prompt"].unique()
    return Measured(
        training,
        {name: rows for name, (rows, _) in scored.items()},
        summaries,
        quality,
        {name: features for name, (_, features) in scored.items()},
        sum(map(measures.clip.towers.too_long, prompts)),
    )


def finish(
    comparison: Comparison, measures: Measures, images: CaptionedImages, folders: dict[str, Path],
    resolution: int,
) -> pd.DataFrame:  # fmt: skip
    """Measure a comparison's runs; write tables, training images and `comparison.json`; return the table."""
    out = Path(comparison.out)
    measured = measure(measures, images, folders, resolution, comparison.cache)
    first, quality = next(iter(measured.rows.values())), measured.quality
    table = with_published(measured.table(), comparison.published)
    write_atomically(out / "comparison.parquet", lambda part: table.to_parquet(part, index=False))
    memorized, subset = measured.memorized(), out / "comparison_memorized.parquet"
    subset.unlink(missing_ok=True)  # of a former comparison
    if memorized and memorized["prompts"]:
        part_table = measured.table(memorized_prompts(measured.rows["none"]))
        write_atomically(subset, lambda part: part_table.to_parquet(part, index=False))
    save_training_images(measured, first, resolution, out / "training")
    sscd = comparison.sscd and f"SSCD {redacted(comparison.sscd)}, protocol {comparison.sscd_protocol}"
    about = {
        "title": out.resolve().parent.name if out.name == "compare" else out.name,
        "model": redacted(comparison.model.pipeline),
        "base_model": comparison.base_pipeline and redacted(comparison.base_pipeline),
        "descriptor": "; ".join(filter(None, [CORRELATION, sscd])),
        "clip": redacted(comparison.clip),
        "features": quality and f"{quality.name}, {len(quality.reference):,} training images",
        "notes": [
            f"Prompts: {first['prompt_id'].nunique()}, samples of each: {comparison.samples_per_prompt}; "
            f"guidance {comparison.model.guidance_scale:g}, {comparison.model.num_inference_steps} steps; "
            f"top matches are searched among {len(images):,} images.",
            *measured.notes(),
        ],
        "memorized": memorized,
        "sweeps": comparison.sweeps(),
    }
    write_atomically(out / "comparison.json", lambda part: part.write_text(json.dumps(about, indent=2)))
    return table


def with_published(table: pd.DataFrame, published: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The table with others' figures in `<column>_published`, null where they give none."""
    for name, figures in published.items():
        for column, figure in figures.items():
            table.loc[table["mitigation"] == name, f"{column}_published"] = figure
    return table


def save_training_images(measured: Measured, rows: pd.DataFrame, resolution: int, folder: Path) -> None:
    """Save the first of each prompt's own training images as `<prompt id>.png`; the page shows gaps."""
    each = rows.drop_duplicates("prompt_id")
    for key, own in zip(each["prompt_id"], measured.training.own(each), strict=True):
        if own:
            with suppress(Exception):  # an unreadable image, which a note names
                save_image(measured.training.images[own[0]].rgb(resolution), folder / f"{key}.png")
