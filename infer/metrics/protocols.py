"""How images are put to a copy detector. Similarities by two protocols are not comparable."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
ProtocolName = Literal["dcr", "skew320", "resize288"]


@dataclass(frozen=True)
class Protocol:
    """Bilinear resizing with antialiasing, as torchvision's Resize of a PIL image, then (x - mean) / std.

    Attributes:
        side: of the square that the detector sees.
        short_side: of the resized image, whose centre is cropped to the square; None: the whole image is
            resized to the square, and its aspect ratio is not kept.
        statistics: mean and standard deviation of red, green and blue.
        source: whose it is.
    """

    side: int
    short_side: int | None
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    source: str

    def square(self, image: Image.Image) -> Image.Image:
        image = image.convert("RGB")
        if self.short_side is None:
            return image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        # torchvision's rounding: the long side down, the crop's corner to even
        short = min(image.size)
        width, height = (int(self.short_side * side / short) for side in image.size)
        left, top = round((width - self.side) / 2), round((height - self.side) / 2)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return resized.crop((left, top, left + self.side, top + self.side))

    def __call__(self, images: list[Image.Image]) -> Tensor:
        """(B, 3, side, side)."""
        pixels = torch.from_numpy(np.stack([np.asarray(self.square(image)) for image in images]))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in self.statistics)
        return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


PROTOCOLS: dict[str, Protocol] = {
    "dcr": Protocol(224, 256, HALF, "Somepalli et al. (CVPR 2023), diff_retrieval.py of somepago/DCR"),
    "skew320": Protocol(320, None, IMAGENET, "Pizzi et al. (CVPR 2022): Meta's recommendation for batches"),
    "resize288": Protocol(
        288,
        None,
        IMAGENET,
        "Hong et al. (MemBench, 2024): to 288x288; Meta's own Resize(288) keeps the aspect",
    ),
}


def protocol_of(name: str) -> Protocol:
    """ValueError for a name that is none."""
    if name not in get_args(ProtocolName):
        raise ValueError(f"no SSCD protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
