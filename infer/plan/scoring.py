"""Score a few images, to see how long the measuring of a comparison takes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from data.captioned import CaptionedImages
from infer.compare.measures import MeasureOptions, Measures
from infer.compare.score_images import score_folder
from infer.metrics.training_set import TrainingSet
from infer.plan.clock import now
from infer.predict.run_folder import save_image

IMAGES = 16  # of each kind


@dataclass(frozen=True)
class Scoring:
    """Seconds of loading the models, of a generated image and of a training image; how many these are."""

    start: float
    generated: float
    training: float
    images: int

    def seconds(self, generated: int) -> float:
        """Of scoring so many images, where no embedding of a training image is cached."""
        return self.start + generated * self.generated + self.images * self.training


def time_scoring(options: MeasureOptions, resolution: int, device: torch.device, folder: Path) -> Scoring:
    """Score images of noise in `folder` against the first training images, of which nothing is cached."""
    begun = now(device)
    measures, images = Measures(options, str(device)), options.training_images()
    loaded = now(device)
    few = CaptionedImages(images.samples[:IMAGES])
    ids = [sample.id for sample in few.samples]
    noise = np.random.default_rng(0)
    for name in ids:
        pixels = noise.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
        save_image(Image.fromarray(pixels), folder / f"{ids.index(name)}.png")
    rows = {"prompt_id": ids, "sample": 0, "prompt": [sample.caption for sample in few.samples]}
    rows |= {"image": [f"{number}.png" for number in range(len(ids))], "failed_step": np.nan}
    pd.DataFrame(rows).to_parquet(folder / "samples.parquet")

    def embed() -> TrainingSet:
        training = TrainingSet(few, resolution, measures.descriptors)
        if measures.features:
            training.embeddings(measures.features)
        return training

    def score(training: TrainingSet) -> None:
        score_folder(folder, training, measures.clip, measures.features, measures.objects)

    score(embed())  # a device's first is slower
    started = now(device)
    training = embed()
    embedded = now(device)
    score(training)
    ended = now(device)
    return Scoring(
        loaded - begun, (ended - embedded) / len(few), (embedded - started) / len(few), len(images)
    )
