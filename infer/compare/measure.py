"""Measure predict runs of the same images: scores, one table, and what its numbers rest on."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from data.captioned import CaptionedImages
from data.files import remove_temporary_files, write_atomically, write_json
from infer.compare.options import Comparison
from infer.metrics.clip_score import ClipScore
from infer.metrics.distances import Extractor, Quality, diversity, extractor
from infer.metrics.options import MeasureOptions
from infer.metrics.score import TrainingSet, read_samples, score, was_scored
from infer.metrics.similarity import Descriptor, pixel_descriptor, sscd_descriptor
from infer.metrics.summary import (
    MEMORIZED,
    check_same_images,
    memorized_by,
    memorized_prompts,
    notes_on,
    summarize,
)
from infer.predict.run_folder import save_image


@dataclass
class Measured:
    """Scored runs by name: their rows, what each says of itself, and features of their scored images."""

    training: TrainingSet
    rows: dict[str, pd.DataFrame]
    told: dict[str, Mapping[str, Any]]
    quality: Quality | None
    features: dict[str, Tensor]

    def notes(self) -> list[str]:
        """What the numbers rest on, and what they do not show."""
        first = next(iter(self.rows.values()))
        lines, without = notes_on(first), self.without_own(first)
        lost = {name: int((~was_scored(rows)).sum()) for name, rows in self.rows.items()}
        if without:
            lines.append(f"{without} of the prompts have no image of their own in the training set.")
        if other := self.training.renamed(first):
            lines.append(
                f"{other} of the prompts are measured against the training image of their id, which has "
                "ANOTHER CAPTION: are these ids of the same set?"
            )
        if any(lost.values()):
            lines.append(
                "Left out, failed or unreadable: "
                + ", ".join(f"{count} images of {name}" for name, count in lost.items() if count)
            )
        if self.quality:
            lines.append(
                f"FID and its like are against all {self.quality.references:,} training images, also those "
                "that no prompt is of."
            )
        return [*lines, *(self.quality.notes if self.quality else [])]

    def without_own(self, rows: pd.DataFrame) -> int:
        each = rows.drop_duplicates("prompt_id")
        return sum(not own for own in self.training.own(each))

    def memorized(self) -> dict[str, Any] | None:
        """The prompts that are copied without mitigation, and how they were chosen; None without that run."""
        if "none" not in self.rows:
            return None
        none = self.rows["none"]
        chosen = memorized_prompts(none)
        return {
            "threshold": MEMORIZED,
            "measure": "SSCD" if memorized_by(none) == "sscd_own" else "correlation of 32x32 RGB",
            "prompts": len(chosen),
            "of": int(none["prompt_id"].nunique()),
            "notes": [
                "Chosen by the very images of none that are compared here: part of each fall is regression "
                "to the mean.",
                *notes_on(none[none["prompt_id"].isin(chosen)]),
            ],
        }

    def table(self, prompts: Sequence[str] | None = None) -> pd.DataFrame:
        """A row per run, of these prompts or all; differences are to the run called none.

        FID and its like are given for all prompts only: of fewer images they are other numbers.
        """
        kept = self.rows
        if prompts is not None:
            kept = {name: rows[rows["prompt_id"].isin(prompts)] for name, rows in kept.items()}
        lines = []
        for name, rows in kept.items():
            line = summarize(name, rows, self.told[name], None if name == "none" else kept.get("none"))
            if self.quality and prompts is None:
                line |= self.quality.measure(self.features[name])
                ids = list(rows["prompt_id"][was_scored(rows)])
                line["diversity_mean"] = diversity(self.features[name], ids)
            lines.append(line)
        return pd.DataFrame(lines)


@dataclass
class Measures:
    """What is measured by."""

    descriptors: dict[str, Descriptor]
    clip: ClipScore
    features: Extractor | None  # of FID, KID and CMMD

    @classmethod
    def load(cls, options: MeasureOptions, device: str) -> "Measures":
        descriptors = {"similarity": pixel_descriptor}
        if options.sscd:
            descriptors["sscd"] = sscd_descriptor(
                options.sscd, options.sscd_protocol, options.sscd_sha256, device
            )
        clip = ClipScore(options.clip, device)
        return cls(descriptors, clip, extractor(options.features, clip, device) if options.features else None)


def measure(
    measures: Measures, images: CaptionedImages, folders: dict[str, Path], resolution: int, cache: str
) -> Measured:
    """Score the run folders, in `samples.parquet`; ValueError where they are not of the same images."""
    check_same_images({name: read_samples(folder) for name, folder in folders.items()})
    training = TrainingSet.embed(images, resolution, measures.descriptors, cache)
    rows, told, features = {}, {}, {}
    for name, folder in folders.items():
        found: list[Tensor] = []
        rows[name] = score(folder, training, measures.clip, also=collecting(measures.features, found))
        told[name] = json.loads((folder / "summary.json").read_text())
        features[name] = torch.cat(found).double() if found else torch.empty(0, 1)
    extract = measures.features
    quality = Quality(extract, training.embeddings.by(extract)) if extract else None
    return Measured(training, rows, told, quality, features)


def collecting(extract: Extractor | None, found: list[Tensor]) -> Callable[[list, Tensor], None] | None:
    """Puts the features of scored images into `found`; those of CLIP are known from the alignment."""
    if extract is None:
        return None
    if extract.name == "clip":
        return lambda images, features: found.append(features)
    return lambda images, features: found.append(extract(images))


def finish(
    comparison: Comparison, measures: Measures, images: CaptionedImages, folders: dict[str, Path],
    resolution: int,
) -> pd.DataFrame:  # fmt: skip
    """Measure a comparison's runs; write its tables, training images and `comparison.json`; the table."""
    out = Path(comparison.out)
    remove_temporary_files(out)
    measured = measure(measures, images, folders, resolution, comparison.cache)
    first, quality = next(iter(measured.rows.values())), measured.quality
    table = with_published(measured.table(), comparison.published)
    write_atomically(out / "comparison.parquet", lambda part: table.to_parquet(part, index=False))
    memorized, subset = measured.memorized(), out / "comparison_memorized.parquet"
    subset.unlink(missing_ok=True)  # of another time
    if memorized and memorized["prompts"]:
        part_table = measured.table(memorized_prompts(measured.rows["none"]))
        write_atomically(subset, lambda part: part_table.to_parquet(part, index=False))
    save_training_images(measured, first, resolution, out / "training")
    about = {
        "title": out.resolve().parent.name if out.name == "compare" else out.name,
        "model": comparison.pipeline,
        "base_model": comparison.base_pipeline,
        "descriptor": described(comparison),
        "features": quality and f"{quality.name}, {quality.references:,} training images",
        "notes": [
            f"Prompts: {first['prompt_id'].nunique()}, samples of each: {comparison.samples_per_prompt}; "
            f"guidance {comparison.guidance_scale:g}, {comparison.num_inference_steps} steps; top "
            f"matches are searched among {len(images):,} images.",
            *measured.notes(),
        ],
        "memorized": memorized,
        "sweeps": comparison.sweeps(),
    }
    write_json(out / "comparison.json", about)
    return table


def described(options: MeasureOptions) -> str:
    sscd = f"; SSCD {options.sscd}, protocol {options.sscd_protocol}" if options.sscd else ""
    return f"correlation of 32x32 RGB{sscd}"


def with_published(table: pd.DataFrame, published: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The table with others' figures in `<column>_published`, null where they give none."""
    for name, figures in published.items():
        for column, figure in figures.items():
            table.loc[table["mitigation"] == name, f"{column}_published"] = figure
    return table


def save_training_images(measured: Measured, rows: pd.DataFrame, resolution: int, folder: Path) -> None:
    """The first of each prompt's own training images as `<prompt id>.png`."""
    each = rows.drop_duplicates("prompt_id")
    for key, own in zip(each["prompt_id"], measured.training.own(each), strict=True):
        if own:
            save_image(measured.training.images[own[0]].rgb(resolution), folder / f"{key}.png")
