"""The predict runs of an audit: one loaded model, one run folder for each set of images, scored alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from data.captioned import CaptionedImages
from data.disk import full_disk_named
from data.files import digest
from data.images.decoding import decoded
from infer.audit.answer import training_index, with_nearness
from infer.audit.difference import LEAST, repeated_part
from infer.audit.options import Audit
from infer.compare.measures import Measures
from infer.compare.score_images import score_folder
from infer.denoising.hooks import GuidanceRule
from infer.denoising.requests import ListedRequests, Request
from infer.metrics.similarity import embed_all
from infer.metrics.training_set import TrainingSet
from infer.predict.module import Generate
from infer.predict.options import GenerateOptions
from infer.predict.prompt_data import PromptData

MakeTrainer = Callable[[Path, str, Sequence[GuidanceRule], dict[str, Any]], Any]


@dataclass(kw_only=True)
class Images(GenerateOptions):
    """Images that are chosen already, as `predict` takes them."""

    chosen: list[Request]

    def requests(self) -> ListedRequests:
        return ListedRequests(self.chosen)


class Runs:
    """Makes and scores images.

    Args:
        options: of the audit.
        trainer: (run folder, label, mitigations, Lightning's options) -> a trainer that writes the folder.
    """

    def __init__(self, options: Audit, trainer: MakeTrainer):
        self.options, self.trainer = options, trainer
        self.module = Generate(options.model)
        self.module.load()
        self.measures = Measures(options.measuring, options.device)

    def embed(self, images: CaptionedImages) -> None:
        """Embed the training images, once."""
        resolution = self.options.model.resolution_of(self.module.pipe)
        self.training = TrainingSet(images, resolution, self.measures.descriptors, self.options.cache)

    def make(self, name: str, requests: list[Request], label: str, rules: Sequence[GuidanceRule]) -> Path:
        """Generate what is missing of the images; their run folder, whose name follows from the requests."""
        options = self.options
        folder = Path(options.out) / "runs" / f"{name}-{digest(*requests)[:8]}"
        data = PromptData(Images(
            out=str(folder), model=options.model, seed=options.seed, batch_size=options.batch_size,
            samples_per_prompt=options.samples_per_prompt, chosen=requests,
        ))  # fmt: skip
        with full_disk_named(folder):
            trainer = self.trainer(folder, label, rules, options.trainer())
            trainer.predict(self.module, data, return_predictions=False)
        return folder

    def scored(self, folder: Path) -> pd.DataFrame:
        """The rows of a run folder with `similarity`, and whether each `returns` a training image."""
        options = self.options
        rows = with_nearness(score_folder(folder, self.training, self.measures.clip)[0], options.measure)
        rows = rows.assign(returns=rows["similarity"] > options.threshold)
        if options.sscd:
            return rows
        near, (descriptor, _) = rows[rows["returns"]], self.training.measures[options.measure]
        paths = [folder / name for name in near["image"]]
        images = embed_all(map(read_rgb, paths), descriptor)
        owners = training_index(self.training, options.measure, near, images)
        rows.loc[near.index, "returns"] = list(map(self.is_returned, paths, owners))
        return rows

    def is_returned(self, path: Path, owner: int) -> bool:
        """Whether an image above the threshold returns its training image.

        By SSCD it does. Pixels are alike where layout and colours are: there half of the places with detail
        must be repeated, too.
        """
        return bool(self.options.sscd) or not self.repeated(path, owner)[1] < LEAST  # NaN: without detail

    def repeated(self, path: Path, owner: int) -> tuple[Image.Image, float]:
        """The part of a training image that an image repeats, as a map, and its share."""
        return repeated_part(read_rgb(path), self.training.images[owner].rgb(self.training.resolution))


def read_rgb(path: Path) -> Image.Image:
    return decoded(path.read_bytes())
