"""Embeddings of the training images, kept on disk while nothing that they depend on changes."""

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.captioned import CaptionedImages
from data.files import DAY, digest, one_line, remove_temporary_files, write_atomically
from infer.metrics.similarity import Descriptor, embed_all

log = logging.getLogger(__name__)
DECODING = 2  # how images are decoded: raise it when that changes


class TrainingEmbeddings:
    """Training images, embedded at the generations' resolution.

    Args:
        images: the training images.
        resolution: they are resized and cropped to it before a descriptor sees them.
        cache: folder with a file for each descriptor, resolution and set of images; None: nothing is kept.
    """

    def __init__(self, images: CaptionedImages, resolution: int, cache: str | Path | None = None):
        self.images, self.resolution = images, resolution
        self.cache = None if cache is None else Path(cache)

    @cached_property
    def digest(self) -> str:
        """Of ids and encoded images, in order."""
        samples = (digest(sample.id, sample.image) for sample in self.images.samples)
        return digest(DECODING, *samples)

    def by(self, descriptor: Descriptor) -> Tensor:
        """Embeddings (M, D), from the cache if they are there; NaN for images without one."""
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
            log.warning("embeddings of training images are not kept: %s", one_line(error))
        return embeddings

    def embed(self, descriptor: Descriptor) -> Tensor:
        readable: list[int] = []
        images = self.decoded(readable)
        embeddings = embed_all(images, descriptor, label="embed training images", total=len(self.images))
        if not embeddings.isfinite().all(1).any():
            raise ValueError(f"{descriptor.identity} gives no finite numbers for any training image")
        out = torch.full((len(self.images), embeddings.shape[1]), torch.nan)
        out[readable] = embeddings
        return out

    def decoded(self, readable: list[int]) -> Iterator[Image.Image]:
        """Images that can be decoded; their indices are added to `readable`, the others are named."""
        for index, sample in enumerate(self.images.samples):
            try:
                image = sample.rgb(self.resolution)
            except Exception as error:  # image decoders raise many kinds
                log.warning("training image %r is left out of the search: %s", sample.id, one_line(error))
                continue
            readable.append(index)
            yield image
