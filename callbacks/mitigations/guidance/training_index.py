"""The nearest training image of an image in memory, by a similarity that can be differentiated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data.captioned import load_captioned
from infer.metrics.similarity import CONSTANT
from infer.metrics.sscd import PROTOCOLS, Protocol, ProtocolName, chosen_descriptor, sscd_file
from infer.metrics.training_set import TrainingSet

Embed = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in 0..1 -> unit embeddings (B, D)


def correlate(images: Tensor) -> Tensor:
    """`infer.metrics.similarity.correlate` of images in memory: 32x32 RGB without mean, of unit length."""
    small = F.interpolate(255 * images.float(), size=(32, 32), mode="area")
    constant = small.detach().flatten(2).std(2, correction=0).amax(1) < CONSTANT
    flat = small.flatten(1)
    unit = F.normalize(flat - flat.mean(1, keepdim=True))
    return torch.where(constant[:, None], torch.nan, unit)


def prepared(protocol: Protocol, images: Tensor) -> Tensor:
    """What the copy detector sees: `Protocol` for square images in memory."""
    side = protocol.short_side or protocol.resolution
    resized = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    corner = round((side - protocol.resolution) / 2)
    square = resized[..., corner : corner + protocol.resolution, corner : corner + protocol.resolution]
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in protocol.statistics)
    return (square - mean) / std


def sscd_embedding(path: str, protocol: ProtocolName, device: torch.device) -> Embed:
    """SSCD through torch; ValueError for an ONNX file, which has no gradient."""
    file = sscd_file(path)
    if file.suffix == ".onnx":
        raise ValueError(
            f"AMG needs the gradient of SSCD, and {path!r} has none: give a TorchScript file (.pt)"
        )
    model = torch.jit.load(str(file), map_location=device).eval()
    for weight in model.parameters():  # a scripted module has no requires_grad_ of its own
        weight.requires_grad_(False)
    return lambda images: F.normalize(model(prepared(PROTOCOLS[protocol], images)).float())


class Nearest(NamedTuple):
    """The most similar training image of each: similarity, NaN where undefined, and index, (B,) each."""

    similarity: Tensor
    index: Tensor


@dataclass
class TrainingIndex:
    """Training images by their embeddings, and their captions.

    Attributes:
        embed: images in memory -> unit embeddings, differentiable.
        embeddings: of the training images, (M, D), NaN for those that have none.
        captions: the first of each.
    """

    embed: Embed
    embeddings: Tensor
    captions: list[str]

    @classmethod
    def of(
        cls, training: list[str], resolution: int, device: torch.device, sscd: str | None = None,
        protocol: ProtocolName = "skew320", cache: str | None = None,
    ) -> "TrainingIndex":  # fmt: skip
        """From sources of captioned images, at the generations' resolution; `sscd` in place of pixels."""
        embed: Embed = correlate if sscd is None else sscd_embedding(sscd, protocol, device)
        descriptor = chosen_descriptor(sscd, protocol, device=str(device))
        images = load_captioned(*training)
        embeddings = TrainingSet(images, resolution, {"similarity": descriptor}, cache).measures[
            "similarity"
        ][1]
        return cls(embed, embeddings.to(device), [sample.caption for sample in images.samples])

    def nearest(self, images: Tensor) -> Nearest:
        """Of images (B, 3, H, W) in 0..1."""
        with torch.autocast(images.device.type, enabled=False):
            cosines = self.embed(images) @ self.embeddings.nan_to_num(nan=0).T  # no embedding: cosine 0
        return Nearest(*cosines.max(1))

    def similarity(self, images: Tensor, index: Tensor) -> Tensor:
        """To the training image of that index, (B,); differentiable."""
        return (self.embed(images) * self.embeddings[index]).sum(1)
