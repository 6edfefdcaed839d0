"""Cut the bundled emoji out of their white ground, as stickers with a white rim."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data.captioned import Sample, load_captioned
from data.emoji import SHARDS
from data.scenes import HELD_OUT_NAMES, NAMES

GROUND = (255, 0, 255)  # marks the ground while it is cut off; no emoji has this colour
TOLERANCE = 24  # of the sum of the channels' differences from white: edges are blended with it
RIM = 3  # px of white around a drawing of 64 px


@cache
def sticker(style: str, name: str, side: int) -> Image.Image:
    """An emoji as one icon set draws it, RGBA; its longer side has `side` px."""
    whole = whole_sticker(style, name)
    size = [max(1, round(length * side / max(whole.size))) for length in whole.size]
    return whole.resize(size, Image.Resampling.LANCZOS)


@cache
def whole_sticker(style: str, name: str) -> Image.Image:
    return cut(drawings(style)[name].rgb())


@cache
def drawings(style: str) -> dict[str, Sample]:
    images = load_captioned(str(SHARDS / f"{style}-00000.tar.gz"))
    names = {*NAMES, *HELD_OUT_NAMES}
    return {sample.caption: sample for sample in images.samples if sample.caption in names}


def cut(image: Image.Image) -> Image.Image:
    """RGB on white -> RGBA: white that touches the border is ground; all else stands on a white rim."""
    whole = Image.new("RGB", (image.width + 4 * RIM, image.height + 4 * RIM), "white")
    whole.paste(image, (2 * RIM, 2 * RIM))
    marked = whole.copy()
    ImageDraw.floodfill(marked, (0, 0), GROUND, thresh=TOLERANCE)
    drawing = Image.fromarray((np.asarray(marked) != GROUND).any(2).astype(np.uint8) * 255)
    mask = drawing.filter(ImageFilter.MaxFilter(2 * RIM + 1)).filter(ImageFilter.GaussianBlur(0.8))
    whole.putalpha(mask)
    return whole.crop(mask.getbbox())
