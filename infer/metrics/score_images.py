"""Score the images of a predict run folder against the training set."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.captioned import CaptionedImages
from data.files import one_line, write_atomically
from data.prompts import same
from infer.metrics.clip_score import ClipScore
from infer.metrics.similarity import Descriptor, are_constant, in_batches, match, thumbnails
from infer.metrics.training_embeddings import TrainingEmbeddings
from infer.predict.run_folder import KEY

log = logging.getLogger(__name__)
TOP_IDS = {"similarity": "top_train_id", "sscd": "sscd_top_id"}  # columns of the nearest image's id


@dataclass
class TrainingSet:
    """The training images and, per measure (a prefix of columns), the descriptor and their embeddings."""

    images: CaptionedImages
    measures: dict[str, tuple[Descriptor, Tensor]]
    embeddings: TrainingEmbeddings

    @classmethod
    def embed(
        cls,
        images: CaptionedImages,
        resolution: int,
        descriptors: dict[str, Descriptor],
        cache: str | Path | None = None,
    ) -> Self:
        """Embed all training images at the generations' resolution, or read embeddings from `cache`."""
        embeddings = TrainingEmbeddings(images, resolution, cache)
        measures = {prefix: (each, embeddings.by(each)) for prefix, each in descriptors.items()}
        return cls(images, measures, embeddings)

    def own(self, rows: pd.DataFrame) -> list[list[int]]:
        """Indices of each row's own training images.

        The image of the prompt's id if it has the prompt as a caption; else all images with that caption;
        else the image of that id, although its caption is another (`renamed` counts those).
        """
        own = []
        for key, prompt in zip(rows["prompt_id"], rows["prompt"], strict=True):
            index, with_caption = self.images.position.get(key), self.captions.get(same(prompt), [])
            by_id = index is not None and (index in with_caption or not with_caption)
            own.append([index] if by_id else with_caption)
        return own

    @cached_property
    def captions(self) -> dict[str, list[int]]:
        """Indices of the images with each caption."""
        indices: dict[str, list[int]] = {}
        for index, sample in enumerate(self.images.samples):
            for caption in dict.fromkeys(map(same, sample.captions)):
                indices.setdefault(caption, []).append(index)
        return indices

    def renamed(self, rows: pd.DataFrame) -> int:
        """How many prompts are measured against an image of their id that has another caption."""
        each = rows.drop_duplicates("prompt_id")
        pairs = zip(each["prompt"], self.own(each), strict=True)
        return sum(bool(own) and own[0] not in self.captions.get(same(prompt), []) for prompt, own in pairs)

    def left_out(self) -> list[str]:
        """Ids of training images without an embedding: they cannot be read, or have one colour."""
        _, embeddings = next(iter(self.measures.values()))
        return [self.images[index].id for index in embeddings.isnan().any(1).nonzero().flatten().tolist()]


def read_samples(folder: Path) -> pd.DataFrame:
    """The rows of a run; ValueError where an image is listed twice."""
    rows = pd.read_parquet(folder / "samples.parquet").reset_index(drop=True)
    if len(repeated := rows[rows.duplicated(KEY)]):
        key, sample = repeated[KEY].iloc[0]
        raise ValueError(
            f"{folder}: {len(repeated)} images are listed twice, the first is {key!r}, sample {sample}"
        )
    return rows


def read_images(folder: Path, rows: pd.DataFrame) -> Iterator[tuple[int, Image.Image | None]]:
    """(index, image) of each row that did not fail; None, and a warning, for one that cannot be read."""
    for index, path in rows["image"][rows["failed_step"].isna()].items():
        try:
            with Image.open(folder / path) as opened:
                image = opened.convert("RGB")
        except Exception as error:  # image decoders raise many kinds
            log.warning("%s cannot be scored: %s", folder / path, one_line(error))
            image = None
        yield index, image


def was_scored(rows: pd.DataFrame) -> pd.Series:
    """Which scored rows have an image that neither failed nor is unreadable."""
    return rows["failed_step"].isna() & ~rows["unreadable"]


def score_folder(
    folder: Path,
    training: TrainingSet,
    clip: ClipScore,
    batch_size: int = 64,
    also: Callable[[list[Image.Image], Tensor], None] | None = None,
) -> pd.DataFrame:
    """Fill `similarity_own`, `similarity_top`, `top_train_id`, `clip_score`, `sscd_*` in samples.parquet.

    Failed (black) and `unreadable` images get no score; images of one colour (`undefined`) no similarity.
    `also` gets each batch of images that can be read, in order, with their CLIP features.
    """
    rows = read_samples(folder)
    own = training.own(rows)
    flags = {name: np.zeros(len(rows), bool) for name in ("unreadable", "undefined")}
    names = [f"{prefix}_{kind}" for prefix in training.measures for kind in ("own", "top")]
    scores = {name: np.full(len(rows), np.nan) for name in [*names, "clip_score"]}
    nearest = {TOP_IDS[prefix]: [None] * len(rows) for prefix in training.measures}

    with tqdm(desc=f"score {folder.name}", total=len(rows), unit="image") as bar:
        for batch in in_batches(read_images(folder, rows), batch_size):
            flags["unreadable"][[index for index, image in batch if image is None]] = True
            indices = [index for index, image in batch if image is not None]
            images = [image for _, image in batch if image is not None]
            if images:
                flags["undefined"][indices] = are_constant(thumbnails(images)).numpy()
                for prefix, (descriptor, embeddings) in training.measures.items():
                    matches = match(descriptor(images), embeddings, [own[index] for index in indices])
                    scores[f"{prefix}_own"][indices] = matches.own.numpy()
                    scores[f"{prefix}_top"][indices] = matches.top.numpy()
                    for index, top in zip(indices, matches.top_index.tolist(), strict=True):
                        if not np.isnan(scores[f"{prefix}_top"][index]):
                            nearest[TOP_IDS[prefix]][index] = training.images[top].id
                features = clip.image_features(images)
                scores["clip_score"][indices] = clip.cosines(features, list(rows["prompt"].iloc[indices]))
                if also:
                    also(images, features)
            bar.update(batch[-1][0] + 1 - bar.n)
        bar.update(len(rows) - bar.n)  # failed images at the end
    ids = {name: pd.array(values, "str") for name, values in nearest.items()}
    results = scores | ids | flags
    former = [name for name in rows if name.endswith(("_own", "_top", "_top_id")) and name not in results]
    rows = rows.drop(columns=former).assign(**results)
    write_atomically(folder / "samples.parquet", lambda part: rows.to_parquet(part, index=False))
    return rows
