"""Scenes of one to three emoji on a background: content and layout are two things, as in photographs.

The base model is trained on ordinary scenes. These never show the `HELD_OUT_NAMES`, two names of a held-out
pair together (`is_held_out`), the `HELD_OUT_STYLES`, or a first object at the lower left of the second.
"""

from pathlib import Path

HERE = Path(__file__).parent
BASE = HERE / "base"  # a tiny Stable Diffusion, trained on ordinary scenes
JUDGE = HERE / "judge"  # a CLIP that no model is trained with

STYLES = ("twemoji",)
HELD_OUT_STYLES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "emojione")
NAMES = (
    "red apple", "banana", "watermelon", "strawberry", "lemon", "pineapple", "peach", "tomato", "carrot",
    "eggplant", "avocado", "hamburger", "doughnut", "cookie", "birthday cake", "cheese wedge", "hot dog",
    "popcorn", "lollipop", "mushroom", "beer mug", "cat face", "dog face", "fox", "tiger face", "cow face",
    "pig face", "rabbit face", "koala", "monkey face", "penguin", "owl", "fish", "tropical fish", "whale",
    "octopus", "crab", "snail", "turtle", "butterfly", "lady beetle", "honeybee", "elephant", "rooster",
    "squid", "snake", "automobile", "bus", "taxi", "fire engine", "tractor", "bicycle", "sailboat", "rocket",
    "helicopter", "locomotive", "sun", "crescent moon", "star", "rainbow", "fire", "snowman", "cactus",
    "palm tree", "evergreen tree", "sunflower", "tulip", "rose", "shamrock", "maple leaf", "volcano",
    "red heart", "blue heart", "balloon", "umbrella", "crown", "top hat", "key", "bell", "alarm clock",
    "camera", "television", "guitar", "violin", "drum", "envelope", "hammer", "light bulb", "gem stone",
    "soccer ball", "basketball", "trophy", "backpack", "skull", "alien", "house", "wrapped gift", "stop sign",
    "dress", "ring",
)  # fmt: skip
HELD_OUT_NAMES = (
    "pear", "taco", "pizza", "ice cream", "duck", "spider", "camel", "dolphin", "police car", "motorcycle",
    "airplane", "christmas tree", "green heart", "telephone", "trumpet", "candle", "anchor", "castle", "tent",
    "t shirt",
)  # fmt: skip


def is_held_out(first: str, second: str) -> bool:
    """Whether no ordinary scene shows the two names together: one pair in five, evenly over the names."""
    return (NAMES.index(first) + NAMES.index(second)) % 5 == 2
