"""From an encoded image of any kind to right RGB of 8 bits, and what makes an image unusable."""

import contextlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from data.files import one_line
from data.images.jpeg import is_cut

# Others are left out: Pillow's reader of EPS starts a program, and such data has none of them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs: a quarter of a GiB in RGB
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `problem` refuses what it warns of


def opened(encoded: bytes) -> Image.Image:
    """The header is read, the pixels are not."""
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


def problem(encoded: bytes) -> tuple[str, str] | None:
    """Why an image cannot be used: the reason by which it is counted, and the details; None if it can.

    The image is decoded, because much damage shows only then; a JPEG at an eighth of its size, for which its
    whole content is read as well. Takes 1 to 8 ms for 512 x 512 pixels, twice that for a progressive JPEG.
    """
    try:
        image = opened(encoded)
        width, height = image.size
        if width * height > MAX_PIXELS:
            return "too large images", f"{width} x {height} pixels, the limit is {MAX_PIXELS:,}"
        image.draft("L", (1, 1))
        image.load()
        if image.format in ("JPEG", "MPO") and is_cut(encoded, image):
            return "unreadable images", "its data end before its last block"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return "too large images", str(error)
    except Exception as error:  # PIL raises half a dozen kinds, SyntaxError among them
        return "unreadable images", one_line(error)
    return None


def decoded(encoded: bytes, side: int | None = None) -> Image.Image:
    """RGB: the first frame, turned as EXIF says, 16 bits scaled to 8, on white where transparent.

    `side`: a JPEG may come smaller, down to an eighth, as long as no side is shorter than this.
    """
    image = opened(encoded)
    if side:
        image.draft(None, (side, side))
    image.load()  # outside of `suppress`, in which damage would go unnoticed
    with contextlib.suppress(Exception):  # a broken EXIF block must not cost the image
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        values = np.asarray(image).astype(np.int64)
        if isinstance(hidden := image.info.get("transparency"), int):
            values[values == hidden] = 65535
        return Image.fromarray((values.clip(0, 65535) / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
