"""The page of images of other tools: each beside the training image that it is nearest to."""

from pathlib import Path

import pandas as pd

from infer.compare.measures import MeasureOptions
from infer.compare.results import Measured
from infer.compare.score_images import TOP_IDS
from infer.metrics.columns import IMAGE_COLUMNS, measure_of
from infer.metrics.similarity import BLIND_SPOTS, nearest_threshold
from infer.predict.run_folder import save_image
from infer.report.pairs import Pair, write_pairs

SHOWN = 200  # the nearest


def write_images_page(
    options: MeasureOptions, images: Path, measured: Measured, notes: list[str], out: Path
) -> Path:
    """Write `images.html`, and the training images that it shows; its path."""
    [rows], training = measured.rows.values(), measured.training
    prefix = measure_of(rows).removesuffix("_own")
    ranked = rows.dropna(subset=f"{prefix}_top").sort_values(f"{prefix}_top", ascending=False, kind="stable")
    shown = ranked.head(SHOWN)
    paths = {key: out / "training" / f"{key}.png" for key in shown[TOP_IDS[prefix]]}
    for key, path in paths.items():
        save_image(training.images[training.images.position[key]].rgb(training.resolution), path)
    threshold = nearest_threshold(by_pixels=prefix != "sscd")
    pairs = [
        pair_of(line, prefix, paths[line[TOP_IDS[prefix]]], threshold) for line in shown.to_dict("records")
    ]
    above = int((ranked[f"{prefix}_top"] > threshold).sum())
    about = options.measured_by()
    headline = (
        f"{above} of {len(ranked)} images have a similarity above {threshold:g} to a training image "
        f"({'SSCD' if prefix == 'sscd' else about['descriptor']})."
    )
    facts = {"Images": str(images), "Similarity by": about["descriptor"], "CLIP": about["clip"]}
    notes = [BLIND_SPOTS, *notes]
    if len(ranked) > SHOWN:
        notes.append(f"{SHOWN} of {len(ranked):,} images are shown; all are in samples.parquet.")
    return write_pairs(out / "images.html", f"Images: {images.name}", headline, facts, notes, pairs)


def pair_of(line: dict, prefix: str, nearest: Path, threshold: float) -> Pair:
    """An image and its nearest training image, with the numbers of the image."""
    facts = [
        f"{label}: {shape.format(line[name])}"
        for name, (label, shape) in IMAGE_COLUMNS.items()
        if name in line and not pd.isna(line[name]) and line[name] is not False
    ]
    images = {"image": Path(line["image"]), "nearest training image": nearest}
    return Pair(line["prompt"], images, facts, line[f"{prefix}_top"] > threshold)
