"""The parts of the world of scenes: what the base model learns, what a finetune memorizes, what neither saw.

Each part has a seed of its own. A part that is made larger begins with the same scenes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, count, islice

import numpy as np

from data.scenes import HELD_OUT_NAMES, HELD_OUT_STYLES, NAMES, STYLES, is_held_out
from data.scenes.compose import RESOLUTION, Scene, exchanged, free_names, scene_of

VIEW = 32  # px of the squares in which objects are looked for
VARIANTS = 5  # of a template, which counts as one of them


def ordinary(rng: np.random.Generator) -> Iterator[Scene]:
    """What the base model is trained on, and what stays ordinary in a finetune."""
    while True:
        yield scene_of(free_names(rng), rng)


def held_out_pairs(rng: np.random.Generator) -> Iterator[Scene]:
    """Two names that no ordinary scene shows together, each pair once."""
    pairs = sum(is_held_out(*pair) for pair in combinations(NAMES, 2))
    seen: set[frozenset[str]] = set()
    while len(seen) < pairs:
        names = free_names(rng, held_out_pair=True)
        if frozenset(names) not in seen:
            seen.add(frozenset(names))
            yield scene_of(names, rng)


def templates(rng: np.random.Generator) -> Iterator[Scene]:
    """Layouts of held-out pairs, each `VARIANTS` times with another second object."""
    for scene in held_out_pairs(rng):
        variants = {scene.objects[-1].name: scene}
        while len(variants) < VARIANTS:
            variant = exchanged(scene, rng)
            variants.setdefault(variant.objects[-1].name, variant)
        yield from variants.values()


def held_out_objects(rng: np.random.Generator) -> Iterator[Scene]:
    """One object that no ordinary scene has, beside a known one."""
    while True:
        names = [str(rng.choice(HELD_OUT_NAMES)), str(rng.choice(NAMES))]
        yield scene_of(names, rng)


def held_out_styles(rng: np.random.Generator) -> Iterator[Scene]:
    """Ordinary names as other artists draw them."""
    while True:
        yield scene_of(free_names(rng), rng, style=str(rng.choice(HELD_OUT_STYLES)))


def held_out_placements(rng: np.random.Generator) -> Iterator[Scene]:
    """A first object at the lower left of a second."""
    while True:
        if len(names := free_names(rng)) > 1:
            yield scene_of(names, rng, lower_left=True)


def views(rng: np.random.Generator) -> Iterator[Scene]:
    """All names in all styles, for the CLIP that judges: whole scenes, and squares around one object."""
    names = NAMES + HELD_OUT_NAMES
    while True:
        shown = [str(name) for name in rng.choice(names, rng.integers(1, 4), replace=False)]
        scene = scene_of(shown, rng, style=str(rng.choice(STYLES + HELD_OUT_STYLES)))
        if rng.uniform() < 0.3:
            yield scene
            continue
        centre = scene.objects[0]
        side = int(rng.integers(VIEW - 4, VIEW + 9))
        corner = (
            place + (centre.side - side) // 2 + int(rng.integers(-6, 7))
            for place in (centre.left, centre.top)
        )
        left, top = (min(max(0, value), RESOLUTION - side) for value in corner)
        yield replace(scene, view=(left, top, side))


PARTS: dict[str, tuple[Callable[[np.random.Generator], Iterator[Scene]], int, int]] = {
    # the scenes, how many, how many of them another part has already
    "ordinary": (ordinary, 4000, 0),
    "memorized": (held_out_pairs, 100, 0),
    "templates": (templates, 100, 0),
    "pairs": (held_out_pairs, 200, 100),
    "objects": (held_out_objects, 100, 0),
    "styles": (held_out_styles, 100, 0),
    "placements": (held_out_placements, 100, 0),
    "views": (views, 24_000, 0),
}


def part(name: str, number: int | None = None) -> list[Scene]:
    """The scenes of a part, or the first so many of them; ValueError where there are not so many."""
    scenes, usual, taken = PARTS[name]
    number = usual if number is None else number
    rng = np.random.default_rng(SEEDS[scenes])
    chosen = list(islice(scenes(rng), taken, taken + number))
    if len(chosen) < number:
        raise ValueError(f"{name}: {number:,} scenes are asked for, but it has only {len(chosen):,}")
    return chosen


SEEDS = dict(
    zip(dict.fromkeys(scenes for scenes, _, _ in PARTS.values()), count(1))
)  # pairs go on from memorized
