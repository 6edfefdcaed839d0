"""The training images that generated ones are compared with, and their embeddings, which are kept on disk."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from data.batches import in_batches
from data.captioned import CaptionedImages
from data.cli import without_traceback
from data.files import DAY, digest, one_line, remove_temporary_files, write_atomically
from data.prompts import same
from infer.metrics.similarity import Descriptor

log = logging.getLogger(__name__)
DECODING = 2  # how images are decoded: raise it when that changes
BATCH, ROWS = 64, 4096  # images embedded, and embeddings looked at, together


class TrainingSet:
    """Training images, embedded at the generations' resolution.

    Args:
        images: the training images.
        resolution: they are resized and cropped to it before a descriptor sees them.
        descriptors: by measure, which is a prefix of columns.
        cache: folder with a file for each descriptor, resolution and set of images; None: nothing is kept.

    Attributes:
        measures: descriptor and embeddings (M, D) by measure; NaN for images that have no embedding.
    """

    def __init__(
        self,
        images: CaptionedImages,
        resolution: int,
        descriptors: Mapping[str, Descriptor],
        cache: str | Path | None = None,
    ):
        self.images, self.resolution = images, resolution
        self.cache = None if cache is None else Path(cache)
        self.measures = {prefix: (each, self.embeddings(each)) for prefix, each in descriptors.items()}

    @cached_property
    def digest(self) -> str:
        """Of ids and encoded images, in order."""
        samples = (digest(sample.id, sample.image) for sample in self.images.samples)
        return digest(DECODING, *samples)

    def embeddings(self, descriptor: Descriptor) -> Tensor:
        """(M, D), from the cache if they are there; NaN for images that cannot be read or have one colour."""
        if self.cache is None:
            return self.embed(descriptor)
        path = self.cache / f"{digest(descriptor.identity, self.resolution, self.digest)}.safetensors"
        if path.exists():
            try:
                return load_file(path)["embeddings"]
            except (SafetensorError, OSError, KeyError) as error:
                log.warning("%s is damaged (%s): training images are embedded again", path, one_line(error))
        embeddings = self.embed(descriptor)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_temporary_files(path.parent, older_than=DAY)
            write_atomically(path, lambda part: save_file({"embeddings": embeddings}, part))
        except (OSError, SafetensorError) as error:
            log.warning(
                "embeddings of training images are not kept, and computed again next time: %s",
                without_traceback(error),
            )
        return embeddings

    def embed(self, descriptor: Descriptor) -> Tensor:
        out, any_finite = torch.empty(0, 0), False  # filled in place: there may be gigabytes of it
        for batch in in_batches(self.decoded(), BATCH):
            numbers, images = map(list, zip(*batch, strict=True))
            embeddings = descriptor(images)
            if not len(out):
                out = torch.full((len(self.images), embeddings.shape[1]), torch.nan)
            out[numbers] = embeddings
            any_finite |= bool(embeddings.isfinite().all(1).any())
        if not any_finite:
            raise ValueError(f"{descriptor.identity} gives no finite numbers for any training image")
        return out

    def decoded(self) -> Iterator[tuple[int, Image.Image]]:
        """(index, image) of each that can be decoded; the others are named."""
        for index, sample in enumerate(tqdm(self.images.samples, "embed training images", unit="image")):
            try:
                image = sample.rgb(self.resolution)
            except Exception as error:  # image decoders raise many kinds
                log.warning("training image %r is left out of the search: %s", sample.id, one_line(error))
                continue
            yield index, image

    def left_out(self) -> list[str]:
        """Ids of the images that cannot be read, or have one colour."""
        _, embeddings = next(iter(self.measures.values()))
        lost = torch.cat([part.isnan().any(1) for part in embeddings.split(ROWS)])
        return [self.images[index].id for index in lost.nonzero().flatten().tolist()]

    def own(self, rows: pd.DataFrame) -> list[list[int]]:
        """Indices of each row's own training images.

        The image of the prompt's id if it has the prompt as a caption; else all images with that caption;
        else the image of that id, although its caption is another (`renamed` counts those).
        """
        own = []
        for key, prompt in zip(rows["prompt_id"], rows["prompt"], strict=True):
            index, with_caption = self.images.position.get(key), self.captions.get(same(prompt), [])
            by_id = index is not None and (not with_caption or self.has_caption(index, prompt))
            own.append([index] if by_id else with_caption)
        return own

    def has_caption(self, index: int, prompt: str) -> bool:
        """Without a look at the other images, all of which may have that caption."""
        return same(prompt) in map(same, self.images[index].captions)

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
        return sum(bool(own) and not self.has_caption(own[0], prompt) for prompt, own in pairs)


def not_searched(ids: Sequence[str]) -> str:
    """The note on training images that are left out (`TrainingSet.left_out`): how many, and the first."""
    return (
        f"{len(ids)} training images are not searched, they cannot be read or have one colour: "
        f"{', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}."
    )
