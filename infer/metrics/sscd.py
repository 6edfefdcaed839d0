"""SSCD, a copy detector (Pizzi et al., CVPR 2022), and the published ways to prepare its images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.cli import warn_no_effect
from data.files import one_line, redacted, sha256_of
from infer.metrics.similarity import Descriptor, are_constant, pixel_descriptor, thumbnails
from infer.models.download import check_sha256, fetch, is_url, verify

SSCD_MODELS = {
    name: f"https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_{name}.torchscript.pt"
    for name in ("disc_mixup", "disc_large")
}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
ProtocolName = Literal["dcr", "skew320", "resize288"]


@dataclass(frozen=True)
class Protocol:
    """Preparation of images: bilinear, antialiased resizing as torchvision's, then (x - mean) / std.

    Similarities by two protocols are not comparable.

    Attributes:
        resolution: width and height of the square that the detector sees.
        short_side: of the resized image, whose centre is cropped to the square; None: the whole image is
            resized to the square, which changes its aspect ratio.
        statistics: mean and standard deviation of red, green and blue.
        source: who published it.
    """

    resolution: int
    short_side: int | None
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    source: str

    def square(self, image: Image.Image) -> Image.Image:
        image, size = image.convert("RGB"), self.resolution
        if self.short_side is None:
            return image.resize((size, size), Image.Resampling.BILINEAR)
        # torchvision rounds the long side down and the corner of the crop to even
        width, height = (int(self.short_side * length / min(image.size)) for length in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return image.resize((width, height), Image.Resampling.BILINEAR).crop(
            (left, top, left + size, top + size)
        )

    def __call__(self, images: list[Image.Image]) -> Tensor:
        """(B, 3, resolution, resolution)."""
        pixels = torch.from_numpy(np.stack([np.asarray(self.square(image)) for image in images]))
        return self.normalized(pixels.permute(0, 3, 1, 2).float() / 255)

    def normalized(self, pixels: Tensor) -> Tensor:
        """(x - mean) / std of pixels in 0..1, (B, 3, H, W)."""
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in self.statistics)
        return (pixels - mean) / std


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "dcr": Protocol(224, 256, HALF, "Somepalli et al. (CVPR 2023), diff_retrieval.py of somepago/DCR"),
    "skew320": Protocol(320, None, IMAGENET, "Pizzi et al. (CVPR 2022): Meta's recommendation for batches"),
    # Meta's own Resize(288) keeps the aspect ratio
    "resize288": Protocol(288, None, IMAGENET, "Hong et al. (MemBench, 2024): resized to 288x288"),
}


def check_sscd(path: str | None, sha256: str | None = None, protocol: ProtocolName = "skew320") -> None:
    """Check that `path` can be an SSCD model, without downloading or loading it; None is none.

    Raises FileNotFoundError without the file, ValueError for another kind of file or another checksum.
    """
    if path is None:
        if sha256 or protocol != "skew320":
            warn_no_effect("--sscd_protocol or --sscd_sha256", "--sscd is not given")
        return
    check_sha256(sha256)
    if path in SSCD_MODELS:
        return
    if not is_url(path) and not Path(path).is_file():
        raise FileNotFoundError(
            f"no SSCD model {path!r}: give a .pt (TorchScript) or .onnx file, its URL, or one of "
            f"{', '.join(SSCD_MODELS)} (downloaded from Meta)"
        )
    if not (urlsplit(path).path if is_url(path) else path).endswith((".pt", ".torchscript", ".onnx")):
        raise ValueError(f"SSCD model {redacted(path)!r}: give a .pt (TorchScript) or .onnx file")
    if not is_url(path):
        verify(path, sha256)


def sscd_file(path: str, sha256: str | None = None) -> Path:
    """The model's file, downloaded for a URL or one of Meta's names."""
    check_sscd(path, sha256)
    url = SSCD_MODELS.get(path, path)
    return fetch(url, sha256) if is_url(url) else Path(path)


def onnx_model(path: Path, resolution: int) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("an ONNX copy detector needs onnxruntime: pip install -e '.[sscd]'") from error

    session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    model_input = session.get_inputs()[0]
    fixed = [size for size in model_input.shape[2:] if isinstance(size, int)]
    if any(size != resolution for size in fixed):
        raise ValueError(f"it takes images of {fixed}, and the protocol gives {resolution}x{resolution}")
    return lambda pixels: torch.from_numpy(session.run(None, {model_input.name: pixels.numpy()})[0])


def torchscript_model(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    model = torch.jit.load(str(path), map_location=device).eval()
    return lambda pixels: model(pixels.to(device)).float().cpu()


def sscd_descriptor(
    path: str, protocol: ProtocolName = "skew320", sha256: str | None = None, device: str = "cpu"
) -> Descriptor:
    """Load SSCD: unit embeddings, NaN for constant images.

    A TorchScript file is a program that runs when it is loaded: use only files from people whose programs you
    would run, and give the checksum of a download.

    Args:
        path: TorchScript (.pt) or .onnx file, its URL, or `disc_mixup` or `disc_large` (Meta's).
        protocol: how images are prepared.
        sha256: checksum of the file.
        device: for TorchScript; ONNX runs on onnxruntime's own choice.

    Raises FileNotFoundError without the file, ValueError for another kind of file or another checksum.
    """
    prepare, file = PROTOCOLS[protocol], sscd_file(path, sha256)
    try:
        onnx = file.suffix == ".onnx"
        run = onnx_model(file, prepare.resolution) if onnx else torchscript_model(file, device)
    except Exception as error:  # each runtime has its own kinds
        again = f"; if it is broken, delete {file}" if str(file) != path else ""
        raise ValueError(f"cannot read SSCD model {redacted(path)!r}: {one_line(error)}{again}") from error

    @torch.no_grad()
    def embed(images: list[Image.Image]) -> Tensor:
        unit = F.normalize(run(prepare(images)).float())
        return unit.masked_fill(are_constant(thumbnails(images))[:, None], torch.nan)

    return Descriptor(f"SSCD {sha256_of(file)} {protocol}", embed)


def chosen_descriptor(
    sscd: str | None, protocol: ProtocolName = "skew320", sha256: str | None = None, device: str = "cpu"
) -> Descriptor:
    """SSCD where it is given, else the local correlation of 32x32 RGB."""
    return pixel_descriptor if sscd is None else sscd_descriptor(sscd, protocol, sha256, device)
