"""An index of training images: their descriptors without the images, in one file that can go with a model."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.files import one_line, write_atomically
from infer.metrics.similarity import CORRELATION, Descriptor, Matches, match, pixel_descriptor
from infer.metrics.sscd import SSCD_MODELS, check_sscd, sscd_descriptor
from infer.metrics.training_set import TrainingSet

FORMAT = "attraction-basin-index-1"


@dataclass(frozen=True)
class DescriptorIndex:
    """Training images by their descriptors.

    Attributes:
        embeddings: of unit length, (M, D).
        descriptor: identity of what made them: of the pixels' correlation, or SSCD's checksum and protocol.
        resolution: width and height to which the images were brought before.
        ids: of the images, or None.
        sscd: name of the SSCD model, if it is one of Meta's.
    """

    embeddings: Tensor
    descriptor: str
    resolution: int
    ids: list[str] | None = None
    sscd: str | None = None

    @classmethod
    def of(cls, training: TrainingSet, ids: bool = True, sscd: str | None = None) -> "DescriptorIndex":
        """Of the training set's first measure; images without descriptor are left out."""
        descriptor, embeddings = next(iter(training.measures.values()))
        kept = embeddings.isfinite().all(1).nonzero()[:, 0].tolist()
        names = [training.images[number].id for number in kept] if ids else None
        known = sscd if sscd in SSCD_MODELS else None  # no path or address of one's own goes out
        return cls(embeddings[kept].contiguous(), descriptor.identity, training.resolution, names, known)

    def save(self, path: Path) -> None:
        """Write tensors and metadata, whole or not at all."""
        about = {"format": FORMAT, "descriptor": self.descriptor, "resolution": str(self.resolution)}
        about |= {} if self.ids is None else {"ids": json.dumps(self.ids)}
        about |= {} if self.sscd is None else {"sscd": self.sscd}
        tensors = {"embeddings": self.embeddings}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda part: save_file(tensors, part, metadata=about))

    @classmethod
    def load(cls, path: str | Path) -> "DescriptorIndex":
        """FileNotFoundError without the file, ValueError for a file that is no index."""
        how = "build one with: python -m infer index --training SOURCES --out FILE.safetensors"
        if not Path(path).is_file():
            raise FileNotFoundError(f"no index {str(path)!r}: {how}")
        try:
            with safe_open(str(path), "pt") as file:
                about, names = file.metadata() or {}, file.keys()
                if about.get("format") != FORMAT or "embeddings" not in names:
                    raise ValueError(f"{str(path)!r} is no index of this version: {how}")
                embeddings = file.get_tensor("embeddings").float()
            ids, made_by = json.loads(about.get("ids", "null")), about["descriptor"]
            norms, resolution = embeddings.norm(dim=1), about["resolution"]
            if embeddings.ndim != 2 or not len(norms) or not (norms - 1).abs().max() < 0.01:
                raise IndexError("its embeddings are not of unit length")
            if not resolution.isdecimal():
                raise IndexError(f"its resolution is {resolution!r}")
            if ids is not None and len(ids) != len(embeddings):
                raise IndexError(f"it has {len(ids)} ids and {len(embeddings)} embeddings")
            if made_by != CORRELATION and not re.fullmatch(r"SSCD [0-9a-f]{64} \w+", made_by):
                raise IndexError(f"no descriptor is called {made_by!r}")
        except (SafetensorError, OSError, IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{str(path)!r} is no whole index ({one_line(error)}): {how}") from error
        return cls(embeddings, made_by, int(resolution), ids, about.get("sscd"))

    def check(self, sscd: str | None) -> str | None:
        """The SSCD model to use; ValueError where the index needs another one, or none is known."""
        if self.descriptor == CORRELATION:
            return None
        _, sha256, protocol = self.descriptor.split()
        if (model := sscd or self.sscd) is None:
            raise ValueError(f"this index is of SSCD (sha256 {sha256[:12]}...): give its file as sscd")
        check_sscd(model, sha256, protocol)
        return model

    def load_descriptor(self, sscd: str | None = None, device: str = "cpu") -> Descriptor:
        """What made the index; a download or file with another checksum is refused."""
        if (model := self.check(sscd)) is None:
            return pixel_descriptor
        _, sha256, protocol = self.descriptor.split()
        return sscd_descriptor(model, protocol, sha256, device)

    def nearest(self, embeddings: Tensor) -> Matches:
        """`top` and `top_index` of unit embeddings (B, D); NaN where an image has no descriptor."""
        return match(embeddings, self.embeddings, [[]] * len(embeddings))
