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
from infer.alignment import ClipScore
from infer.compare import Comparison
from infer.measure_options import MeasureOptions
from infer.quality import Extractor, Quality, diversity, extractor
from infer.runfolder import save_image, write_atomically
from infer.score import TrainingSet, score, was_scored
from infer.similarity import Descriptor, pixel_descriptor, sscd_descriptor
from infer.summary import MEMORIZED, check_same_images, memorized_prompts, notes_on, summarize


@dataclass
class Measured:
    """Scored runs by name: their rows, what each says of itself, and features of their scored images."""

    training: TrainingSet
    rows: dict[str, pd.DataFrame]
    told: dict[str, Mapping[str, Any]]
    quality: Quality | None
    features: dict[str, Tensor]

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
    """What is measured by: loaded before images are made, so that a missing file is found then."""

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
    training = TrainingSet.embed(images, resolution, measures.descriptors, cache)
    rows, told, features = {}, {}, {}
    for name, folder in folders.items():
        found: list[Tensor] = []
        rows[name] = score(folder, training, measures.clip, also=collecting(measures.features, found))
        told[name] = json.loads((folder / "summary.json").read_text())
        features[name] = torch.cat(found).double() if found else torch.empty(0, 1)
    check_same_images(rows)
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
    comparison: Comparison, measures: Measures, folders: dict[str, Path], resolution: int
) -> pd.DataFrame:
    """Measure a comparison's runs; write its tables, training images and `comparison.json`; the table."""
    out = Path(comparison.out)
    measured = measure(measures, comparison.training_images(), folders, resolution, comparison.cache)
    first = next(iter(measured.rows.values()))
    prompts, notes = first["prompt_id"].nunique(), notes_on(first)
    table = with_published(measured.table(), comparison.published)
    write_atomically(out / "comparison.parquet", lambda part: table.to_parquet(part, index=False))
    memorized, subset = None, out / "comparison_memorized.parquet"
    subset.unlink(missing_ok=True)  # of another time
    if "none" in measured.rows:
        chosen = memorized_prompts(measured.rows["none"])
        memorized = {"threshold": MEMORIZED, "prompts": len(chosen), "of": prompts}
        if chosen:
            part_table = measured.table(chosen)
            write_atomically(subset, lambda part: part_table.to_parquet(part, index=False))
    if orphans := save_training_images(measured, first, resolution, out / "training"):
        notes.append(f"{orphans} prompts have no image of their own in the training set.")
    quality = measured.quality
    about = {
        "title": out.parent.name if out.name == "compare" else out.name,
        "model": comparison.pipeline,
        "base_model": comparison.base_pipeline,
        "descriptor": described(comparison),
        "features": quality and f"{quality.name}, {quality.references:,} training images",
        "notes": [
            f"{prompts} prompts x {comparison.samples_per_prompt} samples, guidance "
            f"{comparison.guidance_scale:g}, {comparison.num_inference_steps} steps; top matches are "
            f"searched among {len(measured.training.images):,} images.",
            *notes,
            *(quality.notes if quality else []),
        ],
        "memorized": memorized,
        "sweeps": comparison.sweeps(),
    }
    write_atomically(out / "comparison.json", lambda part: part.write_text(json.dumps(about, indent=2)))
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


def save_training_images(measured: Measured, rows: pd.DataFrame, resolution: int, folder: Path) -> int:
    """The first of each prompt's own training images as `<prompt id>.png`; how many prompts have none."""
    each = rows.drop_duplicates("prompt_id")
    orphans = 0
    for key, own in zip(each["prompt_id"], measured.training.own(each), strict=True):
        if own:
            save_image(measured.training.images[own[0]].rgb(resolution), folder / f"{key}.png")
        orphans += not own
    return orphans
