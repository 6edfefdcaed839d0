"""Score the images of a predict run folder against the training set."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.batches import in_batches
from data.files import one_line
from data.images.decoding import decoded
from infer.metrics.aggregate import refused
from infer.metrics.clip_score import ClipScore
from infer.metrics.distances import Extractor
from infer.metrics.objects import ObjectSearch, share_found
from infer.metrics.similarity import are_constant, match, thumbnails
from infer.metrics.training_set import TrainingSet
from infer.predict.run_folder import KEY, inside, read_parquet, write_table

log = logging.getLogger(__name__)
SCORED = (*KEY, "prompt", "image", "failed_step")  # columns without which nothing can be scored
TOP_IDS = {"similarity": "top_train_id", "sscd": "sscd_top_id"}  # columns of the nearest image's id


def read_samples(folder: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """The rows of a run, or these columns of them; ValueError where an image is listed twice."""
    rows = read_parquet(folder / "samples.parquet", SCORED, columns).reset_index(drop=True)
    if len(repeated := rows[rows.duplicated(KEY)]):
        key, sample = repeated[KEY].iloc[0]
        raise ValueError(
            f"{folder}: {len(repeated)} images come twice, the first is {key!r}, sample {sample}"
        )
    return rows


def read_images(
    folder: Path, rows: pd.DataFrame, unreadable: np.ndarray, anywhere: bool
) -> Iterator[tuple[int, Image.Image]]:
    """(index, image) of each row that has its image; one that cannot be read is named and marked."""
    paths = rows["image"][has_image(rows)]
    for index, path in tqdm(paths.items(), f"score {folder.name}", len(paths), unit="image"):
        try:
            where = folder / path if anywhere else inside(folder, path)
            image = decoded(where.read_bytes())  # as training images are: on white where transparent
        except Exception as error:  # image decoders raise many kinds
            log.warning("%s/%s cannot be scored: %s", folder, path, one_line(error))
            unreadable[index] = True
            continue
        yield index, image


def was_scored(rows: pd.DataFrame) -> pd.Series:
    """Which scored rows have an image that can be read."""
    return has_image(rows) & ~rows["unreadable"]


def has_image(rows: pd.DataFrame) -> pd.Series:
    """Which rows neither failed (black) nor were refused by a guard (grey)."""
    return rows["failed_step"].isna() & ~refused(rows)


def score_folder(
    folder: Path,
    training: TrainingSet,
    clip: ClipScore,
    extractor: Extractor | None = None,
    objects: ObjectSearch | None = None,
    batch_size: int = 64,
    anywhere: bool = False,
) -> tuple[pd.DataFrame, Tensor]:
    """Fill `similarity_own`, `similarity_top`, `top_train_id`, `clip_score`, `sscd_*`, `objects_found`.

    Failed, refused and `unreadable` images get no score; images of one colour (`undefined`) no similarity;
    those of the empty prompt no `clip_score`.

    Args:
        folder: of the run.
        training: what the images are compared with.
        clip: measures how they fit their prompts.
        extractor: of the features.
        objects: finds what the prompts name.
        batch_size: images at a time.
        anywhere: whether images may lie outside of the folder, for rows that this process has made.

    Returns:
        The rows, and the features of the scored images in double precision (N, D), or (0, 1) without any.
    """
    rows = read_samples(folder)
    own, parts = training.own(rows), []
    flags = {name: np.zeros(len(rows), bool) for name in ("unreadable", "undefined")}
    names = [f"{prefix}_{kind}" for prefix in training.measures for kind in ("own", "top")]
    scores = {name: np.full(len(rows), np.nan) for name in [*names, "clip_score"]}
    if objects:
        scores["objects_found"] = np.full(len(rows), np.nan)
    nearest = {TOP_IDS[prefix]: np.full(len(rows), None) for prefix in training.measures}

    for batch in in_batches(read_images(folder, rows, flags["unreadable"], anywhere), batch_size):
        indices, images = map(list, zip(*batch, strict=True))
        flags["undefined"][indices] = are_constant(thumbnails(images)).numpy()
        for prefix, (descriptor, embeddings) in training.measures.items():
            matches = match(descriptor(images), embeddings, [own[index] for index in indices])
            scores[f"{prefix}_own"][indices] = matches.own.numpy()
            scores[f"{prefix}_top"][indices] = matches.top.numpy()
            ids = [training.images[top].id for top in matches.top_index.tolist()]
            nearest[TOP_IDS[prefix]][indices] = np.where(matches.top.isnan(), None, ids)
        features = clip.image_features(images)
        scores["clip_score"][indices] = clip.cosines(features, list(rows["prompt"].iloc[indices]))
        if objects:
            found = objects(images, list(rows["prompt"].iloc[indices]))
            scores["objects_found"][indices] = [share_found(each) for each in found]
        if extractor:
            parts.append(features if extractor.name == "clip" else extractor(images))
    scores["clip_score"][rows["prompt"] == ""] = np.nan  # nothing to fit
    results = scores | {name: pd.array(ids, "str") for name, ids in nearest.items()} | flags
    former = [name for name in rows if name.endswith(("_own", "_top", "_top_id")) and name not in results]
    rows = rows.drop(columns=former).assign(**results)
    write_table(rows, folder / "samples.parquet")
    return rows, torch.cat(parts).double() if parts else torch.empty(0, 1)
