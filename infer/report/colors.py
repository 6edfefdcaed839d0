"""Colours of mitigations: mid-tones that can be told apart on light and on dark, however many there are."""

import colorsys
from functools import cache
from itertools import product

import numpy as np

from infer.report.plots import PALETTE

FIXED = {"none": "#e5534b", "base_model": "#8b909a"}
MID_TONES = (0.5, 0.77)  # of lightness in Oklab


def colors_of(names: list[str]) -> dict[str, str]:
    """One mid-tone per mitigation, the same in every plot, readable on light and on dark."""
    others = [name for name in names if name not in FIXED]
    further = beyond(max(0, len(others) - len(PALETTE)))
    return FIXED | dict(zip(others, (*PALETTE, *further), strict=False))


@cache
def beyond(count: int) -> tuple[str, ...]:
    """More colours than the palette has, each as far from all the others as can be."""
    if not count:
        return ()
    hues, lights = np.linspace(0, 1, 48, endpoint=False), np.linspace(0.3, 0.75, 10)
    drafts = np.array([colorsys.hls_to_rgb(*hls) for hls in product(hues, lights, (0.3, 0.5, 0.75))])
    drafts = np.unique(np.round(drafts * 255).astype(int), axis=0)
    light = oklab(drafts)[:, 0]
    drafts = drafts[(light > MID_TONES[0]) & (light < MID_TONES[1])]
    places, chosen = oklab(drafts), []
    taken = np.array(
        [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in (*PALETTE, *FIXED.values())]
    )
    nearest = np.linalg.norm(places[:, None] - oklab(taken), axis=-1).min(axis=1)
    for _ in range(count):
        best = int(nearest.argmax())
        chosen.append("#{:02x}{:02x}{:02x}".format(*drafts[best]))
        nearest = np.minimum(nearest, np.linalg.norm(places - places[best], axis=-1))
    return tuple(chosen)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Of colours in bytes; distances are about as large as they look (Ottosson, 2020)."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ [[0.41222147, 0.21190350, 0.08830246],
                              [0.53633254, 0.68069955, 0.28171884],
                              [0.05144599, 0.10739696, 0.62997870]])  # fmt: skip
    return cones @ [[0.21045426, 1.97799850, 0.02590404],
                    [0.79361779, -2.42859221, 0.78277177],
                    [-0.00407205, 0.45059371, -0.80867577]]  # fmt: skip
