"""A contact sheet: images with their captions."""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from data.captioned import Sample

MOST, COLUMNS, SIDE, GAP = 48, 8, 176, 8
LINES, LINE, CHARACTERS = 4, 14, 27


def font() -> ImageFont.FreeTypeFont:
    """The one that matplotlib brings: it has Latin, Greek and Cyrillic, and more."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 11)


def contact_sheet(samples: list[Sample]) -> Image.Image:
    """Up to 48 samples in rows of eight: the whole image, its id, its first caption and how many more."""
    samples, letters = samples[:MOST], font()
    columns = min(COLUMNS, len(samples))
    width, height = SIDE + GAP, SIDE + (LINES + 1) * LINE + GAP
    sheet = Image.new("RGB", (columns * width + GAP, -(-len(samples) // columns) * height + GAP), "white")
    for number, sample in enumerate(samples):
        row, column = divmod(number, columns)
        sheet.paste(cell(sample, letters), (GAP + column * width, GAP + row * height))
    return sheet


def cell(sample: Sample, letters: ImageFont.FreeTypeFont) -> Image.Image:
    tile = Image.new("RGB", (SIDE, SIDE + (LINES + 1) * LINE), "white")
    draw = ImageDraw.Draw(tile)
    image = ImageOps.contain(sample.rgb(), (SIDE, SIDE))
    tile.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    more = f"  (+{len(sample.captions) - 1})" if len(sample.captions) > 1 else ""
    draw.text((0, SIDE), sample.id[:24] + more, "gray", letters)
    caption = textwrap.wrap(sample.caption, CHARACTERS, max_lines=LINES, placeholder=" ...")
    for line, text in enumerate(caption, 1):
        draw.text((0, SIDE + line * LINE), text, "black", letters)
    return tile


def write_sheet(samples: list[Sample], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(samples).save(path)
