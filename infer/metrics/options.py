"""What the commands that measure images share: against which training images, and by what."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from data.captioned import CaptionedImages, load_captioned
from data.sources.layouts import open_source
from infer.metrics.clip_score import check_clip
from infer.metrics.sscd import ProtocolName, check_sscd
from infer.options import need, provenance_of


@dataclass(kw_only=True)
class MeasureOptions:
    """What images are measured against, and by what.

    Args:
        run: training run folder; gives whatever else is not set.
        training: sources of the training images, for the similarity search, as training takes them.
        clip: transformers CLIPModel folder or Hub id, or open_clip:MODEL/WEIGHTS, for the alignment.
        sscd: SSCD model for sscd_* columns: a file (.pt TorchScript or .onnx), its URL, or disc_mixup or
            disc_large, which are fetched from Meta.
        sscd_protocol: how images are put to it: dcr (256, centre 224, mean and std 0.5), skew320 (320x320,
            ImageNet's mean and std) or resize288 (288x288, ImageNet's). Figures of two are not comparable.
        sscd_sha256: checksum of the SSCD model.
        features: what FID, KID and CMMD are measured on: the CLIP model, or Inception; null: not at all.
        cache: folder for the embeddings of training images.
    """

    run: str | None = None
    training: list[str] = field(default_factory=list)
    clip: str = "openai/clip-vit-base-patch16"
    sscd: str | None = None
    sscd_protocol: ProtocolName = "skew320"
    sscd_sha256: str | None = None
    features: Literal["clip", "inception"] | None = "clip"
    cache: str = "outputs/cache/embeddings"

    def __post_init__(self) -> None:
        """Check before anything is generated what is needed at the end only."""
        self.of_the_run = bool(self.run and not self.training)  # else all of them are searched
        if self.run:
            provenance = provenance_of(self.run)
            self.training = self.training or [*provenance["sources"], *provenance["ordinary"]]
        need(self, "training")
        check_clip(self.clip)
        check_sscd_options(self)
        for source in self.training:
            if not source.startswith("hf:"):  # a download comes later
                open_source(source, Counter())

    def training_images(self) -> CaptionedImages:
        """What is searched: all of the sources given, or those images of its own that the run showed."""
        images = load_captioned(*self.training)
        if not (self.of_the_run and (shown := Path(self.run) / "exposures.parquet").exists()):
            return images
        rows = pd.read_parquet(shown)
        seen = set(rows["id"][rows["times_shown"] > 0])
        return CaptionedImages([sample for sample in images.samples if sample.id in seen], images.skipped)


def check_sscd_options(options: Any) -> None:
    """ValueError or FileNotFoundError for a model that is not there, or options of one that is not given."""
    if options.sscd:
        check_sscd(options.sscd, options.sscd_sha256)
    elif options.sscd_sha256 or options.sscd_protocol != "skew320":
        raise ValueError("sscd_protocol and sscd_sha256 are the SSCD model's: give --sscd too")
