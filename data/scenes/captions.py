"""Say what a scene shows, in several ways."""

from data.scenes.backgrounds import TEXTURES
from data.scenes.compose import Placed, Scene

VOWELS = "aeiou"


def noun(name: str) -> str:
    """With its article: "an owl"."""
    return f"{'an' if name[0] in VOWELS else 'a'} {name}"


def listing(names: list[str]) -> str:
    """ "a fish, an owl and a ring"."""
    *others, last = map(noun, names)
    return f"{', '.join(others)} and {last}" if others else last


def relation(first: Placed, second: Placed) -> str:
    """Where the first is, seen from the second: the larger of the two distances decides."""
    right, down = first.offset(second)
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def ground(background: str) -> str:
    return f"on {background}" if background in TEXTURES else f"on a {background} ground"


def captions_of(scene: Scene) -> tuple[str, ...]:
    """The caption, then others: in the other order, with a relation, without the background."""
    if scene.view:
        return (noun(scene.objects[0].name),)
    names = [placed.name for placed in scene.objects]
    where = ground(scene.background)
    if len(names) == 1:
        return (f"{noun(names[0])} {where}", noun(names[0]))
    first, second, *others = scene.objects
    related = f"{noun(first.name)} {relation(first, second)} {noun(second.name)}"
    if others:
        related = f"{related}, and {noun(others[0].name)}"
    return (
        f"{listing(names)} {where}",
        f"{listing(names[::-1])} {where}",
        f"{related} {where}",
        related,
        listing(names),
    )
