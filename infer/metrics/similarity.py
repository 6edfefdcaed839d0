"""How alike two images are: cosine of a weight-free descriptor, or of SSCD, and the search with it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.files import one_line
from infer.metrics.protocols import Protocol, protocol_of
from infer.models.download import check_sha256, fetch, is_url, sha256_of, verify

COPY_THRESHOLD = 0.5  # an image whose similarity to a training image is above this is a copy of it
SSCD_MODELS = {
    name: f"https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_{name}.torchscript.pt"
    for name in ("disc_mixup", "disc_large")
}


@dataclass(frozen=True)
class Descriptor:
    """Images -> (B, D) on the CPU. Two of one identity give the same, so that what is stored can be told."""

    identity: str
    embed: Callable[[list[Image.Image]], Tensor]

    def __call__(self, images: list[Image.Image]) -> Tensor:
        return self.embed(images)


def correlate(images: list[Image.Image]) -> Tensor:
    """32x32 RGB, its mean removed, unit length: (B, 3072). The cosine of two is their correlation."""
    small = [np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX)) for image in images]
    flat = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float().flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True))


# Tells copies from non-copies of centred icons, and serves where no copy detector is at hand.
pixel_descriptor = Descriptor("correlation of 32x32 RGB", correlate)


def check_sscd(path: str, sha256: str | None = None) -> None:
    """Whether it can be a model, without downloading it.

    FileNotFoundError without the file, ValueError for another kind of file or another checksum.
    """
    check_sha256(sha256)
    if path in SSCD_MODELS:
        return
    if not is_url(path) and not Path(path).is_file():
        raise FileNotFoundError(
            f"no SSCD model {path!r}: give a .pt (TorchScript) or .onnx file, its URL, or one of "
            f"{', '.join(SSCD_MODELS)}, which are Meta's"
        )
    name = urlsplit(path).path if is_url(path) else path
    if not name.endswith((".pt", ".torchscript", ".onnx")):
        raise ValueError(f"SSCD model {path!r}: only .pt (TorchScript) and .onnx are read")
    if not is_url(path):
        verify(path, sha256)


def sscd_file(path: str, sha256: str | None = None) -> Path:
    """The model's file, downloaded where it is a URL or a name of Meta's."""
    check_sscd(path, sha256)
    url = SSCD_MODELS.get(path, path)
    return fetch(url, sha256) if is_url(url) else Path(path)


def onnx_model(path: Path, protocol: Protocol) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("an ONNX copy detector needs onnxruntime: pip install -e '.[sscd]'") from error

    session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    (asked, *_) = session.get_inputs()
    fixed = [side for side in asked.shape[2:] if isinstance(side, int)]
    if any(side != protocol.side for side in fixed):
        raise ValueError(
            f"it takes images of {fixed}, and the protocol gives {protocol.side}x{protocol.side}"
        )
    return lambda pixels: torch.from_numpy(session.run(None, {asked.name: pixels.numpy()})[0])


def torchscript_model(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    model = torch.jit.load(str(path), map_location=device).eval()
    return lambda pixels: model(pixels.to(device)).float().cpu()


def sscd_descriptor(
    path: str, protocol: str = "skew320", sha256: str | None = None, device: str = "cpu"
) -> Descriptor:
    """SSCD (Pizzi et al., CVPR 2022), unit length.

    A TorchScript file is code, which runs when it is loaded: take it from nobody whom you would not let
    run a program, and give the checksum of one that is downloaded.

    Args:
        path: TorchScript (.pt) or .onnx file, its URL, or `disc_mixup` or `disc_large`, which are Meta's.
        protocol: how images are put to it: a key of PROTOCOLS.
        sha256: checksum of the file.
        device: for TorchScript; ONNX runs where onnxruntime does.

    Raises FileNotFoundError without the file, ValueError for another kind of file or another checksum.
    """
    prepare, file = protocol_of(protocol), sscd_file(path, sha256)
    try:
        run = onnx_model(file, prepare) if file.suffix == ".onnx" else torchscript_model(file, device)
    except Exception as error:  # each runtime has its own kinds
        again = f"; if it is broken, delete {file}" if str(file) != path else ""
        raise ValueError(f"cannot read SSCD model {path!r}: {one_line(error)}{again}") from error

    @torch.no_grad()
    def embed(images: list[Image.Image]) -> Tensor:
        return F.normalize(run(prepare(images)).float())

    return Descriptor(f"SSCD {sha256_of(file)} {protocol}", embed)


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def embed_all(
    images: Iterable[Image.Image],
    descriptor: Callable[[list[Image.Image]], Tensor],
    batch_size: int = 64,
    label: str | None = None,
    total: int | None = None,
) -> Tensor:
    """(N, D), batch by batch, or (0, 0) of no images; with a label a bar shows."""
    parts = []
    with tqdm(desc=label, total=total, unit="image", disable=label is None) as bar:
        for batch in in_batches(images, batch_size):
            parts.append(descriptor(batch))
            bar.update(len(batch))
    return torch.cat(parts) if parts else torch.empty(0, 0)


@dataclass
class Matches:
    """Per image: similarity to the most similar of its own training images (NaN without one), the best match
    among all and its index: of equally good ones the first."""

    own: Tensor
    top: Tensor
    top_index: Tensor


def match(
    images: Tensor, training: Tensor, own: Sequence[Sequence[int]], rows: int = 1024, columns: int = 16384
) -> Matches:
    """Search unit embeddings (N, D) in (M, D); `rows` x `columns` cosines are in memory at once.

    `own`: for each image the places of its own training images.
    """
    top = torch.full((len(images),), -torch.inf)
    index = torch.zeros(len(images), dtype=torch.long)
    for start in range(0, len(images), rows):
        block = slice(start, start + rows)
        for first in range(0, len(training), columns):
            found = (images[block] @ training[first : first + columns].T).max(1)
            better = found.values > top[block]  # not >=: the first of equals stays
            top[block] = torch.where(better, found.values, top[block])
            index[block] = torch.where(better, found.indices + first, index[block])
    alike: dict[tuple[int, ...], list[int]] = {}  # images with the same own ones are searched at once
    for row, places in enumerate(own):
        alike.setdefault(tuple(places), []).append(row)
    likeness = torch.full((len(images),), torch.nan)
    for places, same in alike.items():
        if places:
            likeness[same] = (images[same] @ training[list(places)].T).amax(1)
    top = top.where(images.isfinite().all(1), torch.nan)  # as `own` is by itself
    return Matches(likeness, top, index)
