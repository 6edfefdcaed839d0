"""The nearest training image of an image in memory, by a similarity that can be differentiated."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from data.captioned import load_captioned
from infer.index.descriptor_index import DescriptorIndex
from infer.metrics.similarity import Matches, correlation_embedding
from infer.metrics.sscd import PROTOCOLS, Protocol, ProtocolName, chosen_descriptor, sscd_file
from infer.metrics.training_set import TrainingSet

Embed = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in 0..1 -> unit embeddings (B, D)


def correlate(images: Tensor) -> Tensor:
    """`infer.metrics.similarity.correlate` of images in memory."""
    return correlation_embedding(F.interpolate(255 * images.float(), size=(32, 32), mode="area"))


def prepared(protocol: Protocol, images: Tensor) -> Tensor:
    """What the copy detector sees: `Protocol` for square images in memory."""
    side = protocol.short_side or protocol.resolution
    resized = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    corner = round((side - protocol.resolution) / 2)
    inside = slice(corner, corner + protocol.resolution)
    return protocol.normalized(resized[..., inside, inside])


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


@dataclass
class TrainingIndex:
    """A descriptor index with captions, for images in memory.

    Attributes:
        embed: images in memory -> unit embeddings, differentiable.
        descriptors: of the training images that have one.
        captions: the first of each.
    """

    embed: Embed
    descriptors: DescriptorIndex
    captions: list[str]

    @classmethod
    def of(
        cls, training: list[str], resolution: int, device: torch.device, sscd: str | None = None,
        protocol: ProtocolName = "skew320", cache: str | None = None,
    ) -> "TrainingIndex":  # fmt: skip
        """From sources of captioned images, at the generations' resolution; `sscd` in place of pixels."""
        embed: Embed = correlate if sscd is None else sscd_embedding(sscd, protocol, device)
        descriptor, images = chosen_descriptor(sscd, protocol, device=str(device)), load_captioned(*training)
        made = DescriptorIndex.of(TrainingSet(images, resolution, {"training": descriptor}, cache))
        captions = [images.samples[images.position[key]].caption for key in made.ids]
        return cls(embed, replace(made, embeddings=made.embeddings.to(device)), captions)

    def nearest(self, images: Tensor) -> Matches:
        """`top` and `top_index` of images (B, 3, H, W) in 0..1."""
        with torch.autocast(images.device.type, enabled=False):
            return self.descriptors.nearest(self.embed(images))

    def similarity(self, images: Tensor, index: Tensor) -> Tensor:
        """To the training image of that index, (B,); differentiable."""
        return (self.embed(images) * self.descriptors.embeddings[index]).sum(1)
