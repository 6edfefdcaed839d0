"""Alignment object by object: which of the objects that a prompt names are found in the image, and where."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from infer.metrics.clip_score import ClipScore

WINDOW = 5 / 8  # side of a window, of the image's side
STRIDE = 1 / 8


def read_objects(path: str) -> list[str]:
    """The lines of a file, one object a line, as prompts name it: "a red apple"."""
    names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"{path}: at least two different objects are needed, one a line")
    return names


def windows(image: Image.Image) -> list[tuple[float, float, float, float]]:
    """Squares (left, top, right, bottom) in px that cover the image, at a stride of an eighth."""
    width, height = image.size
    steps = np.arange(0, 1 - WINDOW + 1e-6, STRIDE)
    return [
        (x * width, y * height, (x + WINDOW) * width, (y + WINDOW) * height) for y in steps for x in steps
    ]


@dataclass(frozen=True)
class Found:
    """A named object: where its window's centre is, in shares of width and height; None if nowhere."""

    name: str
    centre: tuple[float, float] | None


class ObjectSearch:
    """Find named objects in images with CLIP, window by window.

    A window shows the object whose text is nearest to it among all listed objects; an object is found where
    some window shows it, and is where its best window is. Retrieval, not a threshold: scores of different
    objects are not compared.

    Args:
        clip: the CLIP that judges; not one whose embeddings a mitigation tunes.
        objects: all objects that prompts may name, each as they name it.
    """

    def __init__(self, clip: ClipScore, objects: Sequence[str]):
        self.clip, self.names = clip, [name.lower() for name in objects]
        with torch.no_grad():
            self.texts = F.normalize(clip.towers.texts(list(objects)).float().cpu())
        longest_first = sorted(map(re.escape, objects), key=len, reverse=True)
        self.pattern = re.compile(rf"\b({'|'.join(longest_first)})\b", re.IGNORECASE)

    def named(self, prompt: str) -> list[str]:
        """The listed objects in a prompt, each once, in its order."""
        return [*dict.fromkeys(name.lower() for name in self.pattern.findall(prompt))]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[list[Found]]:
        """For each image, the objects that its prompt names, and where they are found."""
        places = [windows(image) for image in images]
        crops = [
            image.convert("RGB").resize(image.size, Image.Resampling.BICUBIC, box)
            for image, boxes in zip(images, places, strict=True)
            for box in boxes
        ]
        cosines = F.normalize(self.clip.image_features(crops)) @ self.texts.T  # (windows, objects)
        each = cosines.split([len(boxes) for boxes in places])
        return [
            [self.found(name, image, boxes, rows) for name in self.named(prompt)]
            for image, boxes, rows, prompt in zip(images, places, each, prompts, strict=True)
        ]

    def found(self, name: str, image: Image.Image, boxes: Sequence[tuple], cosines: torch.Tensor) -> Found:
        index = self.names.index(name)
        column = cosines[:, index].where(cosines.argmax(1) == index, -torch.inf)
        if column.isinf().all():
            return Found(name, None)
        left, top, right, bottom = boxes[int(column.argmax())]
        return Found(name, ((left + right) / 2 / image.width, (top + bottom) / 2 / image.height))


def share_found(found: Sequence[Found]) -> float:
    """Share of the named objects that are found; NaN for a prompt that names none."""
    return float(np.mean([each.centre is not None for each in found])) if found else np.nan
