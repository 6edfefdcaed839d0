"""Which phrase of a caption triggers a training image.

The caption is tried without each of its phrases: how near do its images still come to the training image?
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infer.audit.answer import Answer
from infer.audit.options import PHRASES_OF_A_CAPTION
from infer.audit.runs import Runs, read_rgb
from infer.audit.selection import Selection
from infer.compare.score_images import read_samples, was_scored
from infer.denoising.requests import Request
from infer.metrics.similarity import embed_all
from infer.predict.run_folder import KEY

MARKS = re.compile(r"[^,;:|()\n]+")
STARTS = "with|in|on|at|of|by|from|and|under|over|near|behind|beside|against|for|to|wearing|holding"
START = re.compile(rf"\s+(?=(?:{STARTS})\s)", re.IGNORECASE)  # before a word that begins a phrase
Span = tuple[int, int]


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


def phrases_of(caption: str) -> list[Span]:
    """Where the phrases of a caption begin and end: [begin, end).

    It is cut at punctuation marks; where that gives fewer than three, also before words such as `with`; where
    it gives one, between all words. More than PHRASES_OF_A_CAPTION are joined with their neighbours.
    """
    spans = [trimmed(caption, *part.span()) for part in MARKS.finditer(caption) if part[0].strip()]
    if len(spans) < 3:
        spans = [span for whole in spans for span in cut(caption, whole)]
    if len(spans) < 2:
        spans = [word.span() for word in re.finditer(r"\S+", caption)]
    groups = np.array_split(np.array(spans), min(PHRASES_OF_A_CAPTION, len(spans)) or 1)
    return [(int(group[0, 0]), int(group[-1, 1])) for group in groups if len(group)]


def cut(caption: str, span: Span) -> list[Span]:
    """The parts of a span, each but the first from a word that begins a phrase."""
    begin, parts = span[0], []
    for match in START.finditer(caption, *span):
        if match.start() > begin:
            parts.append((begin, match.start()))
            begin = match.end()
    return [*parts, (begin, span[1])]


def trimmed(caption: str, begin: int, end: int) -> Span:
    """The span without white space at its ends."""
    text = caption[begin:end]
    return begin + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


def caption_without(caption: str, span: Span) -> str:
    """The caption without a span, and without the marks and blanks that it leaves."""
    text = f"{caption[: span[0]]} {caption[span[1] :]}"
    text = re.sub(r"\(\s*\)", " ", text)
    text = re.sub(r"([,;:|])(\s*[,;:|])+", r"\1", text)
    return re.sub(r"\s+([,;:|])", r"\1", " ".join(text.split())).strip(" ,;:|")


def shortened(requests: list[Request]) -> dict[Span, list[Request]]:
    """The requests of one caption without each of its phrases, from the same noise; none for one phrase."""
    caption = requests[0].prompt
    spans = phrases_of(caption)
    if len(spans) < 2:
        return {}
    return {
        span: [
            r._replace(prompt_id=f"{r.prompt_id}~{number}", prompt=caption_without(caption, span))
            for r in requests
        ]
        for number, span in enumerate(spans, 1)
    }


def worst_captions(answer: Answer, selection: Selection) -> list[Worst]:
    """The captions that return an image most often, then the nearest, with their images that were scored."""
    rows = answer.rows[was_scored(answer.rows)].set_index(KEY)
    worst: dict[str, Worst] = {}
    lines = answer.returned.sort_values("returning", ascending=False, kind="stable")
    for line in lines.head(selection.plan.phrases).itertuples():
        own = [r for r in selection.requests if r.prompt_id == line.prompt_id and r[:2] in rows.index]
        if selection.unit == "image":
            own = [r for r in own if r.sample == line.sample]
        paths = [answer.folder / rows.loc[request[:2], "image"] for request in own]
        worst.setdefault(line.prompt_id, Worst(own, paths, answer.owners[line.Index]))
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
