"""Embeddings of the training images, kept on disk for as long as nothing that they depend on changes."""

import json
import logging
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.captioned import CaptionedImages
from data.files import DAY, bytes_of, digest, one_line, remove_temporary_files, write_atomically
from infer.metrics.similarity import Descriptor, embed_all

log = logging.getLogger(__name__)
DECODING = 2  # how images are decoded: raise it when that changes


def checksum(embeddings: Tensor) -> str:
    return digest(bytes_of(embeddings))


class TrainingEmbeddings:
    """Training images, embedded at the generations' resolution.

    Args:
        images: the training images.
        resolution: that they are cropped and resized to before a descriptor sees them.
        cache: folder of the files, one for each descriptor, resolution and set of images; None: none.
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
        """(M, D), from the cache if it holds just these."""
        if self.cache is None:
            return self.embed(descriptor)
        asked = {
            "descriptor": descriptor.identity,
            "resolution": str(self.resolution),
            "images": str(len(self.images)),
            "images_sha256": self.digest,
        }
        path = self.cache / f"{digest(json.dumps(asked))[:16]}.safetensors"
        if path.exists():
            try:
                return read(path, asked)
            except ValueError as error:
                log.warning("%s is not used, the training images are embedded anew: %s", path, error)
        embeddings = self.embed(descriptor)
        about = asked | {"embeddings_sha256": checksum(embeddings)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_temporary_files(path.parent, older_than=DAY)
            write_atomically(path, lambda part: save_file({"embeddings": embeddings}, part, about))
        except (OSError, SafetensorError) as error:  # it cost much, and serves without being kept
            log.warning("embeddings of training images are not kept: %s", one_line(error))
        return embeddings

    def embed(self, descriptor: Descriptor) -> Tensor:
        if not len(self.images):
            raise ValueError("there is no training image to search")
        images = (sample.rgb(self.resolution) for sample in self.images.samples)
        embeddings = embed_all(images, descriptor, label="embed training images", total=len(self.images))
        if not embeddings.isfinite().all():
            raise ValueError(f"{descriptor.identity} gives numbers that are not finite for training images")
        return embeddings.contiguous()


def read(path: Path, asked: dict[str, str]) -> Tensor:
    """ValueError for a file that is broken or is of something else."""
    try:
        with safe_open(path, "pt") as file:
            about, embeddings = file.metadata() or {}, file.get_tensor("embeddings")
    except (SafetensorError, OSError) as error:
        raise ValueError(one_line(error)) from error
    if others := [
        f"{key} is {about.get(key)}, not {value}" for key, value in asked.items() if about.get(key) != value
    ]:
        raise ValueError("; ".join(others))
    if about.get("embeddings_sha256") != checksum(embeddings):
        raise ValueError("its content is not what was written")
    return embeddings
