"""Score predict run folders against the training set, and sum up a comparison."""

import logging
from collections import Counter
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
from infer.metrics.similarity import Descriptor, in_batches, match
from infer.metrics.training_embeddings import TrainingEmbeddings
from infer.predict.run_folder import KEY, complete

log = logging.getLogger(__name__)
TOP_IDS = {"similarity": "top_train_id", "sscd": "sscd_top_id"}  # columns of the nearest image's id


@dataclass
class TrainingSet:
    """What the model was trained on; per measure (a prefix of columns) the descriptor and the embeddings."""

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
        """Embed all training images, at the generations' resolution, with each descriptor.

        What the folder `cache` holds of them is taken from there.
        """
        embeddings = TrainingEmbeddings(images, resolution, cache)
        measures = {prefix: (what, embeddings.by(what)) for prefix, what in descriptors.items()}
        return cls(images, measures, embeddings)

    def own(self, rows: pd.DataFrame) -> list[list[int]]:
        """For each row the places of its own images.

        Of its prompt's id if that has its caption; else all of its caption; else of its id, another caption
        notwithstanding (`renamed` tells).
        """
        found = []
        for key, prompt in zip(rows["prompt_id"], rows["prompt"], strict=True):
            place, alike = self.images.position.get(key), self.captions.get(same(prompt), [])
            known = place is not None and (place in alike or not alike)
            found.append([place] if known else alike)
        return found

    @cached_property
    def captions(self) -> dict[str, list[int]]:
        """Where each caption stands."""
        places: dict[str, list[int]] = {}
        for place, sample in enumerate(self.images.samples):
            for caption in dict.fromkeys(map(same, sample.captions)):
                places.setdefault(caption, []).append(place)
        return places

    def renamed(self, rows: pd.DataFrame) -> int:
        """How many prompts are measured against an image of their id whose caption is another."""
        each = rows.drop_duplicates("prompt_id")
        pairs = zip(each["prompt"], self.own(each), strict=True)
        return sum(bool(own) and own[0] not in self.captions.get(same(prompt), []) for prompt, own in pairs)


def read_samples(folder: Path) -> pd.DataFrame:
    """The rows of a run; ValueError where an image comes twice."""
    rows = complete(pd.read_parquet(folder / "samples.parquet")).reset_index(drop=True)
    if len(twice := rows[rows.duplicated(KEY)]):
        key, sample = twice[KEY].iloc[0]
        raise ValueError(f"{folder}: {len(twice)} images come twice, the first is {key!r}, sample {sample}")
    return rows


def read_images(folder: Path, rows: pd.DataFrame) -> Iterator[tuple[int, Image.Image | None]]:
    """(place, image) of each row that did not fail; None, and a warning, where its image cannot be read.

    That is where it is missing, damaged, or of another size than most.
    """
    sizes, errors = {}, {}
    for place, path in enumerate(rows["image"]):
        try:
            with Image.open(folder / path) as image:  # its header alone
                sizes[place] = image.size
        except Exception as error:  # PIL raises half a dozen kinds
            errors[place] = one_line(error)
    common = Counter(sizes.values()).most_common(1)[0][0] if sizes else None

    for place, (path, failed) in enumerate(zip(rows["image"], rows["failed_step"].notna(), strict=True)):
        if failed:
            continue
        image = None
        if place in sizes and sizes[place] != common:
            errors[place] = "it is {}x{}, most are {}x{}".format(*sizes[place], *common)
        elif place in sizes:
            try:
                with Image.open(folder / path) as opened:
                    image = opened.convert("RGB")
            except Exception as error:
                errors[place] = one_line(error)
        if image is None:
            log.warning("%s cannot be scored: %s", folder / path, errors[place])
        yield place, image


def was_scored(rows: pd.DataFrame) -> pd.Series:
    """Of scored rows those whose images neither failed nor are unreadable."""
    return rows["failed_step"].isna() & ~rows["unreadable"]


def score(
    folder: Path,
    training: TrainingSet,
    clip: ClipScore,
    batch_size: int = 64,
    also: Callable[[list[Image.Image], Tensor], None] | None = None,
) -> pd.DataFrame:
    """Fill `similarity_own`, `similarity_top`, `top_train_id`, `clip_score`, `sscd_*` of a run's rows.

    Rows that failed (a black image), and those whose image cannot be read (`unreadable`), get no score.
    `also` is given each batch of the others, in order, with their CLIP features.
    """
    rows = read_samples(folder)
    own, unreadable = training.own(rows), np.zeros(len(rows), bool)
    names = [f"{prefix}_{kind}" for prefix in training.measures for kind in ("own", "top")]
    scores = {name: np.full(len(rows), np.nan) for name in [*names, "clip_score"]}
    nearest = {prefix: [None] * len(rows) for prefix in training.measures}

    with tqdm(desc=f"score {folder.name}", total=len(rows), unit="image") as bar:
        for batch in in_batches(read_images(folder, rows), batch_size):
            unreadable[[place for place, image in batch if image is None]] = True
            places = [place for place, image in batch if image is not None]
            images = [image for _, image in batch if image is not None]
            if images:
                for prefix, (descriptor, embeddings) in training.measures.items():
                    found = match(descriptor(images), embeddings, [own[place] for place in places])
                    scores[f"{prefix}_own"][places] = found.own.numpy()
                    scores[f"{prefix}_top"][places] = found.top.numpy()
                    for place, index in zip(places, found.top_index.tolist(), strict=True):
                        nearest[prefix][place] = training.images[index].id
                features = clip.image_features(images)
                scores["clip_score"][places] = clip.cosines(features, list(rows["prompt"].iloc[places]))
                if also:
                    also(images, features)
            bar.update(batch[-1][0] + 1 - bar.n)
        bar.update(len(rows) - bar.n)  # those at the end that failed
    ids = {TOP_IDS[prefix]: pd.array(found, "str") for prefix, found in nearest.items()}
    former = [
        name for name in rows if name.endswith(("_own", "_top", "_top_id")) and name not in scores | ids
    ]
    rows = rows.drop(columns=former).assign(**scores, **ids, unreadable=unreadable)
    write_atomically(folder / "samples.parquet", lambda part: rows.to_parquet(part, index=False))
    return rows
