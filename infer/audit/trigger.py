"""How near the images of a caption without one of its phrases still come to the training image."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from infer.audit.phrases import shortened
from infer.audit.runs import Runs, opened
from infer.denoising.requests import Request
from infer.metrics.similarity import embed_all, match


class Worst(NamedTuple):
    """A caption that returns a training image: its requests, their images, and the training image."""

    requests: list[Request]
    images: list[Path]
    training_index: int


class Effect(NamedTuple):
    """What leaving a phrase out does; similarities are means over the same noises."""

    prompt_id: str
    prompt: str
    phrase: str
    samples: int
    similarity: float
    similarity_without: float
    returning: int
    returning_without: int


def effects(runs: Runs, worst: list[Worst]) -> list[Effect]:
    """Try each caption without each of its phrases; the phrase that matters most first, caption by caption.

    Images that failed or have one colour count as far away: they return nothing.
    """
    options, variants = runs.options, [shortened(caption.requests) for caption in worst]
    requests = [each for by_span in variants for group in by_span.values() for each in group]
    if not requests:
        return []
    folder = runs.make("phrases", requests, "none", [])
    rows = pd.read_parquet(folder / "samples.parquet").set_index("prompt_id")

    def near(index: int, paths: list[Path]) -> tuple[float, int]:
        """Mean similarity to a training image, and how many return it."""
        descriptor, embeddings = runs.training.measures[options.measure]
        images = embed_all(opened(paths), descriptor)
        similarity = match(images, embeddings[[index]], [[]] * len(images)).top.nan_to_num(0)
        returned = runs.returned(paths, [index] * len(paths), similarity.tolist())
        return similarity.mean().item(), sum(returned)

    found = []
    for caption, by_span in zip(worst, variants, strict=True):
        whole = near(caption.training_index, caption.images)
        text, of_caption = caption.requests[0].prompt, []
        for span, group in by_span.items():
            files = rows.loc[[group[0].prompt_id]].sort_values("sample")["image"]
            left = near(caption.training_index, [folder / file for file in files])
            key, phrase = caption.requests[0].prompt_id, text[slice(*span)]
            pairs = zip(whole, left, strict=True)
            of_caption.append(
                Effect(key, text, phrase, len(files), *(value for pair in pairs for value in pair))
            )
        found += sorted(of_caption, key=lambda effect: effect.similarity_without)
    return found


def trigger_of(found: list[Effect], prompt_id: str) -> Effect | None:
    """The phrase without which the fewest images return the training image, if it makes any difference."""
    own = [effect for effect in found if effect.prompt_id == prompt_id]
    best = min(own, key=lambda effect: (effect.returning_without, effect.similarity_without), default=None)
    return best if best and best.returning_without < best.returning else None
