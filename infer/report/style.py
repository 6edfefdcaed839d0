"""Colours and style of all figures: mid-tones that can be read on light and on dark."""

from itertools import cycle

import matplotlib
from matplotlib.colors import to_hex

INK = "#1f2328"  # text in files; in the page it becomes currentColor, which matplotlib does not have
COPY_COLOR, OTHER_COLOR = "#e5534b", "#8b909a"  # memorized, and not memorized
FIXED = {"none": COPY_COLOR, "base_model": OTHER_COLOR}
PALETTE = ("#3b8eea", "#2fa36b", "#e08a1e", "#9d5bd2", "#14a3a8", "#d9559c", "#a08030", "#6c7ee1",
           "#b8653c", "#6d8f2e", "#b98ae0", "#4f8a8b")  # fmt: skip
MORE = tuple(
    to_hex(matplotlib.colormaps[name].colors[shade + hue])
    for shade in (1, 2)
    for name, hues in (("tab20b", (0, 4, 8, 16)), ("tab20c", (0, 4, 8, 12)))  # no red, no grey
    for hue in hues
)
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.12, "grid.color": INK,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def colors_of(names: list[str]) -> dict[str, str]:
    """A colour per mitigation, in the order of the names; from the 29th on they come again."""
    others = [name for name in names if name not in FIXED]
    return FIXED | dict(zip(others, cycle((*PALETTE, *MORE)), strict=False))
