"""Distances between sets of generated and reference images (FID, KID, CMMD), and diversity of a set."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.files import one_line
from infer.metrics.clip_score import ClipScore
from infer.metrics.similarity import Descriptor

INCEPTION = (  # where torch-fidelity downloads it
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
SIGMA, SCALE = 10.0, 1000.0  # of CMMD
KERNEL_ROWS, KERNEL_PAIRS = 256, 2048**2  # at a time; one by one
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000


@dataclass(frozen=True)
class Extractor(Descriptor):
    """Images -> features (B, D), and what they are called: `clip` or `inception`."""

    name: str


def extractor(
    features: Literal["clip", "inception"], clip: ClipScore | None = None, device: str = "cpu"
) -> Extractor:
    """Load what the distances are measured on.

    clip: image embeddings of the given CLIP model, not normalized (Kynkäänniemi et al., ICLR 2023).
    inception: the 2048 features of FID's Inception v3, through torch-fidelity, in torch.hub's folder.

    Raises ValueError without the package, FileNotFoundError without the weights.
    """
    if features == "clip":
        return Extractor(f"CLIP {clip.fingerprint}", clip.image_features, features)
    if find_spec("torch_fidelity") is None:
        raise ValueError("Inception features need torch-fidelity: pip install 'attraction-basin[inception]'")
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        model = NoTrainInceptionV3("inception-v3-compat", ["2048"]).to(device)
    except OSError as error:  # of the download
        raise FileNotFoundError(
            f"cannot load Inception ({one_line(error)}): put the file of {INCEPTION} into "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from error

    @torch.no_grad()
    def embed(images: list[Image.Image]) -> Tensor:
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
        return model(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)).flatten(1).float().cpu()

    return Extractor("FID's Inception v3, 2048 features", embed, features)


class Quality:
    """Distances of image sets to one set of reference images.

    Args:
        name: of the features, clip or inception.
        reference: features of the reference images, (M, D); rows of NaN are left out.

    Attributes:
        notes: what the numbers do not show; `measure` adds to them.
    """

    def __init__(self, name: str, reference: Tensor):
        self.name, self.reference = name, reference[reference.isfinite().all(1)].double()
        self.notes: list[str] = []
        if name != "clip":
            self.note("CMMD needs CLIP embeddings: there is none with other features.")

    @cached_property
    def within(self) -> float:
        """CMMD's kernel mean within the reference images: once for all sets."""
        unit = F.normalize(self.reference)
        return kernel_mean(unit, unit)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def measure(self, features: Tensor) -> dict[str, float]:
        """`fid`, `kid`, `cmmd` of images' features (N, D); NaN, and a note, where undefined."""
        features = features.double()
        out = dict.fromkeys(("fid", "kid", "cmmd"), float("nan"))
        count, dimension = min(len(features), len(self.reference)), self.reference.shape[1]
        if count < 2:
            self.note("FID, KID and CMMD are undefined for fewer than 2 images.")
            return out
        if count <= dimension:
            self.note(
                f"FID over {count:,} images with {dimension:,} features is biased: compare within one "
                "table only."
            )
        if is_constant(features) or is_constant(self.reference):
            self.note("FID is undefined for a set of images that are all equal.")
        else:
            out["fid"] = frechet(features, self.reference)
        out["kid"] = kernel_distance(features, self.reference)
        if self.name == "clip":
            out["cmmd"] = cmmd(features, self.reference, self.within)
        return out


def is_constant(features: Tensor) -> bool:
    """Whether all rows are equal, up to rounding."""
    return torch.allclose(features, features[:1].expand_as(features), rtol=1e-5, atol=1e-6)


class Features(torch.nn.Identity):
    """Passes features through, where torchmetrics expects a network."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def frechet(features: Tensor, reference: Tensor) -> float:
    """FID (Heusel et al., NeurIPS 2017): |m - n|^2 + tr(A + B - 2 (A B)^1/2), of means and covariances."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=Features(features.shape[1]))
    metric.update(reference, real=True)
    metric.update(features, real=False)
    return metric.compute().item()


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """KID (Binkowski et al., ICLR 2018): unbiased squared MMD with the kernel (x.y / D + 1)^3.

    Mean over 100 subsets of at most 1000 images of each set, with a fixed seed; one subset if it holds both.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KID_SUBSET_SIZE, len(features), len(reference))
    subsets = 1 if size == len(features) == len(reference) else KID_SUBSETS
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        torch.manual_seed(0)
        metric = KernelInceptionDistance(Features(features.shape[1]), subsets, size)
        metric.update(reference, real=True)
        metric.update(features, real=False)
        return metric.compute()[0].item()


def kernel_mean(left: Tensor, right: Tensor) -> float:
    """Mean over all pairs of exp(-|x - y|^2 / (2 sigma^2)) - 1, of unit vectors.

    It is exp(u) - 1 with u = (x.y - 1) / sigma^2; the differences that count are some 1e-3 of the 1. Up to
    KERNEL_PAIRS pairs are computed one by one. With more, the means of u and u^2 / 2 follow from the first
    and second moments of both sets, in time that is proportional to their sizes; the rest of the series, at
    most 1.4e-6, is the mean of evenly chosen pairs.
    """
    if len(left) * len(right) <= KERNEL_PAIRS:
        total = sum(
            torch.expm1((rows @ right.T - 1) / SIGMA**2).sum().item() for rows in left.split(KERNEL_ROWS)
        )
        return total / (len(left) * len(right))
    product = (left.mean(0) @ right.mean(0)).item()
    square = ((left.T @ left) * (right.T @ right)).sum().item() / (len(left) * len(right))
    some = [each[:: -(-len(each) // math.isqrt(KERNEL_PAIRS))] for each in (left, right)]
    u = (some[0] @ some[1].T - 1) / SIGMA**2
    rest = (torch.expm1(u) - u - u**2 / 2).mean().item()
    return (product - 1) / SIGMA**2 + (square - 2 * product + 1) / (2 * SIGMA**4) + rest


def cmmd(features: Tensor, reference: Tensor, within: float | None = None) -> float:
    """CMMD (Jayasumana et al., CVPR 2024): 1000 times the squared MMD of unit CLIP embeddings, sigma = 10.

    As in their code, pairs of an image with itself count: CMMD of equal sets is 0. They use CLIP ViT-L/14 at
    336 pixels.
    """
    x, y = F.normalize(features.double()), F.normalize(reference.double())
    within = kernel_mean(y, y) if within is None else within
    return SCALE * (kernel_mean(x, x) + within - 2 * kernel_mean(x, y))


def diversity(features: Tensor, prompt_ids: Sequence[str]) -> float:
    """Mean over prompts of the mean of 1 - cosine over pairs of a prompt's images.

    Prompts with one image do not count; NaN where all have one.
    """
    unit = F.normalize(features.double())
    numbers = {key: number for number, key in enumerate(dict.fromkeys(prompt_ids))}
    prompt = torch.tensor([numbers[key] for key in prompt_ids], dtype=torch.long)
    images = torch.bincount(prompt, minlength=len(numbers))
    sums = unit.new_zeros(len(numbers), unit.shape[1]).index_add_(0, prompt, unit)
    with_themselves = unit.new_zeros(len(numbers)).index_add_(0, prompt, unit.square().sum(1))
    cosines = (sums.square().sum(1) - with_themselves) / (images * (images - 1))
    return (1 - cosines[images > 1]).mean().item()
