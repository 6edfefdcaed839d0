"""How near the images of a caption without one of its phrases still come to the training image."""

from pathlib import Path
from typing import NamedTuple

from infer.audit.answer import Answer
from infer.audit.phrases import shortened
from infer.audit.runs import Runs, read_rgb
from infer.audit.selection import Selection
from infer.compare.score_images import read_samples, was_scored
from infer.denoising.requests import Request
from infer.metrics.similarity import embed_all
from infer.predict.run_folder import KEY


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


def worst_captions(answer: Answer, selection: Selection) -> list[Worst]:
    """The nearest of the captions that return an image, with those of their images that were scored."""
    rows = answer.rows[was_scored(answer.rows)].set_index(KEY)
    worst: dict[str, Worst] = {}
    lines = answer.returned.head(selection.plan.phrases)
    for owner, line in zip(answer.owners, lines.itertuples(), strict=False):
        own = [r for r in selection.requests if r.prompt_id == line.prompt_id and r[:2] in rows.index]
        if selection.unit == "image":
            own = [r for r in own if r.sample == line.sample]
        paths = [answer.folder / rows.loc[request[:2], "image"] for request in own]
        worst.setdefault(line.prompt_id, Worst(own, paths, owner))
    return list(worst.values())


def effects(runs: Runs, worst: list[Worst]) -> list[Effect]:
    """Try each caption without each of its phrases; the phrase that matters most first, caption by caption.

    Images that failed or have one colour count as far away: they return nothing.
    """
    options, variants = runs.options, [shortened(caption.requests) for caption in worst]
    requests = [each for by_span in variants for group in by_span.values() for each in group]
    if not requests:
        return []
    folder = runs.make("phrases", requests, "none", [])
    rows = read_samples(folder).set_index("prompt_id")
    descriptor, embeddings = runs.training.measures[options.measure]

    def near(index: int, paths: list[Path]) -> tuple[float, int]:
        """Mean similarity to a training image, and how many return it."""
        similarity = (embed_all(map(read_rgb, paths), descriptor) @ embeddings[index]).nan_to_num(0)
        pairs = zip(paths, similarity.tolist(), strict=True)
        above = [path for path, value in pairs if value > options.threshold]
        return similarity.mean().item(), sum(runs.is_returned(path, index) for path in above)

    found = []
    for caption, by_span in zip(worst, variants, strict=True):
        key, _, text, *_ = caption.requests[0]
        similarity, returning = near(caption.training_index, caption.images)
        of_caption = []
        for (begin, end), group in by_span.items():
            paths = [folder / file for file in rows.loc[[group[0].prompt_id], "image"]]
            without, still = near(caption.training_index, paths)
            phrase = text[begin:end]
            effect = Effect(key, text, phrase, len(paths), similarity, without, returning, still)
            of_caption.append(effect)
        found += sorted(of_caption, key=lambda effect: effect.similarity_without)
    return found


def trigger_of(found: list[Effect], prompt_id: str) -> Effect | None:
    """The phrase without which the fewest images return the training image, if it makes any difference."""
    own = [effect for effect in found if effect.prompt_id == prompt_id]
    best = min(own, key=lambda effect: (effect.returning_without, effect.similarity_without), default=None)
    return best if best and best.returning_without < best.returning else None
