"""Which phrase of a caption triggers a training image: the caption is tried without each of its phrases."""

import re

import numpy as np

from infer.denoising.requests import Request

MARKS = re.compile(r"[^,;:|()\n]+")
STARTS = "with|in|on|at|of|by|from|and|under|over|near|behind|beside|against|for|to|wearing|holding"
START = re.compile(rf"\s+(?=(?:{STARTS})\s)", re.IGNORECASE)  # before a word that begins a phrase
MOST = 6
Span = tuple[int, int]


def phrases_of(caption: str, most: int = MOST) -> list[Span]:
    """Where the phrases of a caption begin and end: [begin, end).

    It is cut at punctuation marks; where that gives fewer than three, also before words such as `with`; where
    it gives one, between all words. More than `most` are joined with their neighbours.
    """
    spans = [trimmed(caption, *part.span()) for part in MARKS.finditer(caption) if part[0].strip()]
    if len(spans) < 3:
        spans = [span for whole in spans for span in cut(caption, whole, START)]
    if len(spans) < 2:
        spans = [word.span() for word in re.finditer(r"\S+", caption)]
    groups = np.array_split(np.array(spans), min(most, len(spans)) or 1)
    return [(int(group[0, 0]), int(group[-1, 1])) for group in groups if len(group)]


def cut(caption: str, span: Span, border: re.Pattern) -> list[Span]:
    """The parts of a span between the borders."""
    begin, parts = span[0], []
    for match in border.finditer(caption, *span):
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
