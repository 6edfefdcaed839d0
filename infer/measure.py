"""Measure predict runs of the same images: scores, one table, and what its numbers rest on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from infer.alignment import ClipScore
from infer.compare import Comparison
from infer.measure_options import MeasureOptions
from infer.quality import Quality, diversity, extractor
from infer.runfolder import save_image, write_atomically
from infer.score import TrainingSet, score, scored_images, was_scored
from infer.similarity import pixel_descriptor, sscd_descriptor
from infer.summary import MEMORIZED, check_same_images, memorized_prompts, notes_on, summarize


@dataclass
class Measured:
    """Scored runs by name: their rows, what each says of itself, and features of their scored images."""

    training: TrainingSet
    rows: dict[str, pd.DataFrame]
    told: dict[str, Mapping[str, Any]]
    quality: Quality | None
    features: dict[str, Tensor]

    def table(self, prompts: Iterable[str] | None = None) -> pd.DataFrame:
        """A row per run, of these prompts or all; differences are to the run called none."""
        lines, chosen = [], None if prompts is None else set(prompts)
        kept = {
            name: rows if chosen is None else rows[rows["prompt_id"].isin(chosen)]
            for name, rows in self.rows.items()
        }
        for name, rows in kept.items():
            line = summarize(name, rows, self.told[name], None if name == "none" else kept.get("none"))
            if self.quality:
                scored = self.rows[name][was_scored(self.rows[name])]
                places = scored["prompt_id"].isin(rows["prompt_id"])
                features = self.features[name][torch.tensor(places.to_numpy())]
                line |= self.quality.measure(features)
                line["diversity_mean"] = diversity(features, list(scored["prompt_id"][places]))
            lines.append(line)
        return pd.DataFrame(lines)


def measure(options: MeasureOptions, folders: dict[str, Path], resolution: int, device: str) -> Measured:
    """Score the run folders, in `samples.parquet`; ValueError where they are not of the same images."""
    descriptors = {"similarity": pixel_descriptor}
    if options.sscd:
        descriptors["sscd"] = sscd_descriptor(
            options.sscd, options.sscd_protocol, options.sscd_sha256, device
        )
    clip = ClipScore(options.clip, device)
    extract = extractor(options.features, clip, device) if options.features else None
    training = TrainingSet.embed(options.training_images(), resolution, descriptors, options.cache)
    rows = {name: score(folder, training, clip) for name, folder in folders.items()}
    check_same_images(rows)
    told = {name: json.loads((folder / "summary.json").read_text()) for name, folder in folders.items()}
    if extract is None:
        return Measured(training, rows, told, None, {})
    quality = Quality(extract, training.embeddings.by(extract))
    features = {name: quality.features(scored_images(folders[name], rows[name])) for name in folders}
    return Measured(training, rows, told, quality, features)


def finish(comparison: Comparison, folders: dict[str, Path], resolution: int, device: str) -> pd.DataFrame:
    """Measure a comparison's runs; write its tables, training images and `comparison.json`; the table."""
    out = Path(comparison.out)
    measured = measure(comparison, folders, resolution, device)
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
