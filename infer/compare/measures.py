"""What images are measured against, and by what: the options, and the models that they name."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from data.captioned import CaptionedImages, check_distinct, load_captioned
from data.files import redacted
from data.sources.layouts import open_source, unsaid
from data.table_files import read_exposures
from infer.metrics.clip_score import ClipScore, check_clip
from infer.metrics.distances import extractor
from infer.metrics.objects import ObjectSearch, read_objects
from infer.metrics.similarity import CORRELATION, Descriptor, pixel_descriptor
from infer.metrics.sscd import ProtocolName, check_sscd, sscd_descriptor
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
        sscd_protocol: how images are prepared for SSCD: dcr (256, centre 224, mean and std 0.5), skew320
            (320x320, ImageNet's mean and std) or resize288 (288x288, ImageNet's). Figures of two protocols
            are not comparable.
        sscd_sha256: checksum of the SSCD model.
        objects: file of the objects that prompts may name, one a line ("a red apple"): CLIP then looks for
            each object that a prompt names, for objects_found; null: not at all.
        features: what FID, KID and CMMD are measured on: the CLIP model, or Inception; null: not at all.
        cache: folder for the embeddings of training images.
    """

    run: str | None = None
    training: list[str] = field(default_factory=list)
    clip: str = "openai/clip-vit-base-patch16"
    sscd: str | None = None
    sscd_protocol: ProtocolName = "skew320"
    sscd_sha256: str | None = None
    objects: str | None = None
    features: Literal["clip", "inception"] | None = "clip"
    cache: str = "outputs/cache/embeddings"
    uncaptioned: ClassVar[bool] = False  # training images without a caption are searched, too
    anywhere: ClassVar[bool] = False  # scored images may lie outside of the run folders

    def __post_init__(self) -> None:
        """Check models and sources now: they are needed after all images are generated."""
        self.of_the_run = bool(self.run and not self.training)  # search only images that it showed
        if self.run:
            provenance = provenance_of(self.run)
            self.training = self.training or [*provenance["sources"], *provenance["ordinary"]]
        need(self, "training")
        check_clip(self.clip)
        check_sscd(self.sscd, self.sscd_sha256, self.sscd_protocol)
        if self.objects:
            read_objects(self.objects)
        with unsaid():
            for source in self.on_disk():
                open_source(source, Counter())

    def on_disk(self) -> list[str]:
        """The sources that need no download."""
        return [source for source in self.training if not source.startswith("hf:")]

    def check_ids(self) -> None:
        """Raise ValueError for an id that two training images on disk share; decodes none of them."""
        rows = (row for source in self.on_disk() for row in open_source(source, Counter()).rows)
        ids = (row.id for row in rows if row.image is not None and row.captions)
        with unsaid():
            check_distinct(ids, self.on_disk())

    def training_images(self) -> CaptionedImages:
        """The images to search: all of the given sources, or of a run's own sources those that it showed."""
        images = load_captioned(*self.training, uncaptioned=self.uncaptioned)
        if not (self.of_the_run and (shown := Path(self.run) / "exposures.parquet").exists()):
            return images
        rows = read_exposures(shown.parent)
        seen = set(rows["id"][rows["times_shown"] > 0])
        return CaptionedImages([sample for sample in images.samples if sample.id in seen], images.skipped)

    def measured_by(self) -> dict[str, str]:
        """Names of the similarities, with their protocol, and of the CLIP model."""
        sscd = self.sscd and f"SSCD {redacted(self.sscd)}, protocol {self.sscd_protocol}"
        return {
            "descriptor": "; ".join(filter(None, [CORRELATION, sscd])),
            "clip": redacted(self.clip),
            "objects": self.objects,
        }


class Measures:
    """The models that images are measured by.

    Attributes:
        descriptors: by the prefix of their columns.
        clip: the alignment.
        features: what FID, KID and CMMD are measured on, or None.
        objects: finds the objects that prompts name, or None.
    """

    def __init__(self, options: MeasureOptions, device: str):
        self.descriptors: dict[str, Descriptor] = {"similarity": pixel_descriptor}
        if options.sscd:
            sscd = options.sscd, options.sscd_protocol, options.sscd_sha256, device
            self.descriptors["sscd"] = sscd_descriptor(*sscd)
        self.clip = ClipScore(options.clip, device)
        self.objects = ObjectSearch(self.clip, read_objects(options.objects)) if options.objects else None
        self.features = extractor(options.features, self.clip, device) if options.features else None
