"""Draw backgrounds: plain colours and simple textures, each with a shade of its own."""

import numpy as np

PLAIN = {
    "white": (255, 255, 255), "grey": (196, 196, 200), "yellow": (250, 232, 150), "pink": (250, 200, 212),
    "blue": (176, 208, 246), "green": (186, 226, 178),
}  # fmt: skip
TEXTURES = ("grass", "sand", "water", "snow", "bricks", "wood", "a checkered cloth", "a night sky")
SHADE = 10  # largest change of the brightness, of 255


def background(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (size, size, 3): the plain colour or texture of this name; `rng` draws the shade."""
    shade = rng.uniform(-SHADE, SHADE)
    y, x = np.mgrid[:size, :size] / size
    if name in PLAIN:
        shade = 0 if name == "white" else shade
        return finished(np.broadcast_to(PLAIN[name], (size, size, 3)), shade)
    return finished(TEXTURE[name](x, y), shade)


def finished(colours: np.ndarray, shade: float) -> np.ndarray:
    return np.clip(colours + shade, 0, 255).round().astype(np.uint8)


def blend(weight: np.ndarray, first: tuple[int, int, int], second: tuple[int, int, int]) -> np.ndarray:
    """Colours between `first` where the weight is 0 and `second` where it is 1."""
    weight = np.clip(weight, 0, 1)[..., None]
    return np.array(first) * (1 - weight) + np.array(second) * weight


def wave(x: np.ndarray, count: float) -> np.ndarray:
    """A sine from 0 to 1 with so many periods."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * count * x)


def grass(x, y):
    return blend(wave(x + 0.05 * wave(y, 2), 8) * wave(y, 4), (96, 176, 88), (140, 212, 112))


def sand(x, y):
    return blend(wave(y + 0.08 * wave(x, 1.5), 5), (236, 214, 164), (220, 190, 136))


def water(x, y):
    return blend(wave(y + 0.04 * wave(x, 3), 6), (92, 160, 224), (150, 204, 244))


def snow(x, y):
    return blend(wave(x, 3) * wave(y, 3), (240, 246, 252), (206, 222, 240))


def bricks(x, y):
    row = np.floor(y * 6)
    mortar = ((y * 6) % 1 < 0.17) | ((x * 4 + 0.5 * (row % 2)) % 1 < 0.1)
    return blend(mortar, (196, 108, 84), (226, 206, 190))


def wood(x, y):
    return blend(wave(x + 0.03 * wave(y, 2), 4) ** 2, (196, 146, 96), (166, 116, 70))


def checks(x, y):
    return blend((np.floor(x * 4) + np.floor(y * 4)) % 2, (248, 232, 228), (232, 128, 128))


def night(x, y):
    stars = (wave(x, 4) * wave(y, 4)) ** 16
    return blend(stars + 0.15 * y, (28, 36, 84), (240, 236, 200))


TEXTURE = dict(zip(TEXTURES, (grass, sand, water, snow, bricks, wood, checks, night), strict=True))
