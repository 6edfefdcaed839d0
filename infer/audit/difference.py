"""Which part of a training image a generated one repeats: a map of the local difference."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import Tensor

from infer.plotting import COPY_COLOR, PALETTE

SAME = 0.1  # of the range of grey levels: pixels that differ less look the same side by side
FLAT = 0.03  # of the range: where a picture varies less, there is nothing to repeat
WINDOWS = 12  # across the picture
LEAST = 0.5  # of the places with detail: a picture with the same layout and colours repeats fewer


def pixels_of(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """(3, H, W) in 0..1."""
    array = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)


def local_mean(x: Tensor, window: int) -> Tensor:
    """Mean of (H, W) over a square window around each pixel, which ends at the border."""
    return F.avg_pool2d(x[None, None], window, 1, window // 2, count_include_pad=False)[0, 0]


def local_difference(x: Tensor, y: Tensor, window: int) -> Tensor:
    """Root mean square of x - y over the colours and a window around each pixel, (H, W)."""
    return local_mean((x - y).square().mean(0), window).sqrt()


def local_detail(x: Tensor, window: int) -> Tensor:
    """Standard deviation within a window around each pixel, root mean square over the colours, (H, W)."""
    variance = sum(local_mean(c.square(), window) - local_mean(c, window).square() for c in x) / len(x)
    return variance.clamp(min=0).sqrt()


def repeated_part(image: Image.Image, reference: Image.Image) -> tuple[Image.Image, float]:
    """The reference in grey, red where the image repeats it and blue where it differs; the share repeated.

    Only places with detail count, and only they are coloured; NaN for a reference without any.
    """
    x, y = (pixels_of(each, reference.size) for each in (image, reference))
    window = max(3, min(reference.size) // WINDOWS) | 1
    detailed = local_detail(y, window) > FLAT
    same = local_difference(x, y, window) <= SAME
    grey = np.asarray(reference.convert("L").convert("RGB"), float) * 0.5 + 127
    for where, color in ((detailed & same, COPY_COLOR), (detailed & ~same, PALETTE[0])):
        rgb = np.array(ImageColor.getrgb(color))
        grey[where.numpy()] = grey[where.numpy()] * 0.45 + rgb * 0.55
    share = (detailed & same).sum().item() / count if (count := detailed.sum().item()) else float("nan")
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)), share
