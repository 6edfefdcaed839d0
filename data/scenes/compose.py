"""Compose scenes: a seeded choice of objects, places and background, and the pixels that follow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from data.scenes import NAMES, STYLES, is_held_out
from data.scenes.backgrounds import PLAIN, TEXTURES, background
from data.scenes.sprites import sticker

RESOLUTION = 64
GRID = 8  # px between possible places, and of a latent: an object has the same latents wherever it is
SIDE = 32  # px of an object's square
COUNTS = (0.25, 0.55, 0.2)  # shares of scenes with one, two and three objects
APART = 8  # px between two centres that are said to be left or right, above or below


@dataclass(frozen=True)
class Placed:
    """An object: its name, and its square, in px."""

    name: str
    left: int
    top: int
    side: int

    def offset(self, other: "Placed") -> tuple[float, float]:
        """From the other's centre to this one's: to the right, and down, in px."""
        half = (self.side - other.side) / 2
        return self.left - other.left + half, self.top - other.top + half

    def overlaps(self, other: "Placed") -> bool:
        apart = (
            self.left + self.side <= other.left
            or other.left + other.side <= self.left
            or self.top + self.side <= other.top
            or other.top + other.side <= self.top
        )
        return not apart


@dataclass(frozen=True)
class Scene:
    """What an image shows: `seed` draws the shade of the background.

    `view`, (left, top, side) in px, is the square of the scene that is shown, enlarged; None: all of it.
    """

    objects: tuple[Placed, ...]
    style: str
    background: str
    seed: int
    view: tuple[int, int, int] | None = None

    def image(self) -> Image.Image:
        """RGB of 64 px: the objects, in their order, on the background."""
        rng = np.random.default_rng(self.seed)
        canvas = Image.fromarray(background(self.background, RESOLUTION, rng))
        for placed in self.objects:
            drawing = sticker(self.style, placed.name, placed.side)
            left = placed.left + (placed.side - drawing.width) // 2
            top = placed.top + (placed.side - drawing.height) // 2
            canvas.paste(drawing, (left, top), drawing)
        return enlarged(canvas, *self.view) if self.view else canvas


def enlarged(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    """The square of the image at the image's own size."""
    return image.resize(image.size, Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def held_out_placement(first: Placed, second: Placed) -> bool:
    """Whether the first is at the lower left of the second, which no ordinary scene shows."""
    right, down = first.offset(second)
    return right < -APART and down > APART


def place(names: Sequence[str], rng: np.random.Generator) -> tuple[Placed, ...]:
    """Squares that do not overlap, at free places of the grid."""
    places = (RESOLUTION - SIDE) // GRID + 1
    while True:
        objects = [
            Placed(name, *(int(value) * GRID for value in rng.integers(0, places, 2)), SIDE) for name in names
        ]
        pairs = [(a, b) for i, a in enumerate(objects) for b in objects[i + 1 :]]
        if not any(a.overlaps(b) for a, b in pairs):
            return tuple(objects)


def free_background(rng: np.random.Generator) -> str:
    """White or a colour or a texture: a quarter, a quarter, a half."""
    kind = rng.uniform()
    return str("white" if kind < 0.25 else rng.choice(tuple(PLAIN)) if kind < 0.5 else rng.choice(TEXTURES))


def scene_of(
    names: Sequence[str], rng: np.random.Generator, style: str | None = None, lower_left: bool = False
) -> Scene:
    """A scene of these objects; `lower_left`: of the held-out placement, else never of it."""
    while True:
        objects = place(names, rng)
        held_out = [held_out_placement(a, b) for i, a in enumerate(objects) for b in objects[i + 1 :]]
        if lower_left == any(held_out):
            break
    style = style or str(rng.choice(STYLES))
    return Scene(objects, style, free_background(rng), int(rng.integers(2**31)))


def free_names(rng: np.random.Generator, held_out_pair: bool = False) -> list[str]:
    """One to three names, mostly two; `held_out_pair`: two that no ordinary scene has."""
    while True:
        count = 2 if held_out_pair else int(rng.choice(3, p=COUNTS)) + 1
        names = [str(name) for name in rng.choice(NAMES, count, replace=False)]
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        if held_out_pair == any(is_held_out(*pair) for pair in pairs):
            return names


def exchanged(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same layout with its last object exchanged for another one: a template copy."""
    first = scene.objects[0].name
    names = [name for name in NAMES if name not in {placed.name for placed in scene.objects}]
    held_out = [name for name in names if is_held_out(first, name)]
    last = replace(scene.objects[-1], name=str(rng.choice(held_out)))
    return replace(scene, objects=(*scene.objects[:-1], last))
