"""How alike two images are: cosine of a weight-free descriptor, or of SSCD from a local file."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Descriptor = Callable[[list[Image.Image]], Tensor]  # images -> (B, D), unit length
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def to_tensor(images: list[Image.Image], side: int, resample: Image.Resampling) -> Tensor:
    """(B, 3, side, side) in [0, 1]; the aspect ratio is not kept."""
    arrays = [np.asarray(image.convert("RGB").resize((side, side), resample)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def pixel_descriptor(images: list[Image.Image]) -> Tensor:
    """32x32 RGB, its mean removed, unit length: (B, 3072). The cosine of two is their correlation.

    Weight-free: tells copies from non-copies of centred icons, and serves where no copy detector is at hand.
    """
    flat = to_tensor(images, 32, Image.Resampling.BOX).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True))


def check_sscd(path: str) -> None:
    """FileNotFoundError without the file, ValueError for another kind of file."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no SSCD model {path!r}: give Meta's sscd_disc_mixup.torchscript.pt or an ONNX file of it"
        )
    if not path.endswith((".pt", ".torchscript", ".onnx")):
        raise ValueError(f"SSCD model {path!r}: only .pt (TorchScript) and .onnx are read")


def onnx_model(path: str) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    name = session.get_inputs()[0].name
    return lambda pixels: torch.from_numpy(session.run(None, {name: pixels.numpy()})[0])


def sscd_descriptor(path: str) -> Descriptor:
    """SSCD (Pizzi et al., CVPR 2022) from Meta's TorchScript or an ONNX file; 320x320, ImageNet statistics.

    Raises FileNotFoundError without the file, ValueError for another kind of file.
    """
    check_sscd(path)
    try:
        run = onnx_model(path) if path.endswith(".onnx") else torch.jit.load(path, map_location="cpu").eval()
    except ImportError as error:
        raise ValueError("an ONNX copy detector needs onnxruntime: pip install -e '.[sscd]'") from error
    except Exception as error:  # each runtime has its own kinds
        raise ValueError(f"cannot read SSCD model {path!r}: {str(error).splitlines()[0]}") from error
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))

    @torch.no_grad()
    def embed(images: list[Image.Image]) -> Tensor:
        return F.normalize(run((to_tensor(images, 320, Image.Resampling.BILINEAR) - mean) / std).float())

    return embed


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def embed_all(images: Iterable[Image.Image], descriptor: Descriptor, batch_size: int = 64) -> Tensor:
    """(N, D), batch by batch."""
    return torch.cat([descriptor(batch) for batch in in_batches(images, batch_size)])


@dataclass
class Matches:
    """Per image: similarity to its own training image (NaN without one), the best match and its index."""

    own: Tensor
    top: Tensor
    top_index: Tensor


def match(images: Tensor, training: Tensor, own: list[int | None], chunk: int = 1024) -> Matches:
    """Search unit embeddings (N, D) in (M, D), chunk by chunk; `own`: places in the training set."""
    top, index, own_similarity = [], [], []
    for start in range(0, len(images), chunk):
        similarity = images[start : start + chunk] @ training.T
        best = similarity.max(1)
        top.append(best.values)
        index.append(best.indices)
        for row, place in zip(similarity, own[start : start + chunk], strict=True):
            own_similarity.append(row[place] if place is not None else torch.tensor(torch.nan))
    return Matches(torch.stack(own_similarity), torch.cat(top), torch.cat(index))
