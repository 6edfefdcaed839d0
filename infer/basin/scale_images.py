"""Which images have their critical scale measured, and the measuring."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from data.batches import in_batches, spread
from data.captioned import CaptionedImages, Sample, load_captioned
from data.prompts import load_prompts
from data.table_files import read_exposures
from infer.basin.critical_scale import critical_scale
from infer.basin.options import Basin
from infer.basin.scale_summary import Scales, doubling
from infer.denoising.denoiser import Denoiser
from infer.denoising.sampling import embed


class Shown(NamedTuple):
    """An image, its caption, its group (memorized, ordinary or unseen) and how often training showed it.

    `times_shown` is NaN where that is not known.
    """

    sample: Sample
    caption: str
    group: str
    times_shown: float


def choose_images(options: Basin, samples: CaptionedImages) -> list[Shown]:
    """Memorized images, those of `prompts`; other training images; controls; spread over each doubling.

    How often they were shown, and with which caption, is in the run's `exposures.parquet`, if it has one.
    """
    scale = options.critical_scale
    if not scale.images:
        return []
    memorized = {prompt.id: prompt.text for prompt in load_prompts(options.prompts)}
    times, captions = exposures_of(options.run)
    bins: dict[tuple[str, int], list[Shown]] = defaultdict(list)
    for sample in samples.samples:
        shown = times.get(sample.id, 0 if times else math.nan)
        group = "memorized" if sample.id in memorized else "unseen" if shown == 0 else "ordinary"
        caption = memorized.get(sample.id) or captions.get(sample.id) or sample.caption
        bins[group, doubling(shown)].append(Shown(sample, caption, group, shown))
    if scale.controls:
        controls = load_captioned(scale.controls).samples
        bins["unseen", doubling(0)] += [Shown(sample, sample.caption, "unseen", 0) for sample in controls]
    return [image for key in sorted(bins) for image in spread(bins[key], scale.images)]


def exposures_of(run: str | None) -> tuple[dict[str, int], dict[str, str]]:
    """How often a run showed each image, and its caption, by id; nothing without a run that says it."""
    if not run or not Path(run, "exposures.parquet").exists():
        return {}, {}
    rows = read_exposures(Path(run)).set_index("id")
    return rows["times_shown"].to_dict(), rows["caption"].to_dict()


def latents_of(pipe: Any, images: Sequence[Image], device: torch.device) -> Tensor:
    """Mean latents of images in the UNet's scale, (B, C, H, W), float32."""
    pixels = pipe.image_processor.preprocess([*images]).to(device, pipe.vae.dtype)
    with torch.no_grad():
        mean = pipe.vae.encode(pixels).latent_dist.mean
    return (mean * pipe.vae.config.scaling_factor).float()


def measure_scales(options: Basin, images: Sequence[Shown]) -> Scales:
    """The critical scale of each image with its caption and without, batch by batch."""
    device, scale = torch.device(options.device), options.critical_scale
    pipe = options.model.load(device)
    denoise, resolution = Denoiser(pipe.unet, pipe.scheduler), options.model.resolution_of(pipe)
    levels, found = denoise.levels(scale.levels), {"caption": [], "empty": []}
    pictures: list[Image] = []
    with tqdm(desc="critical scale", total=2 * len(images), unit="image") as bar:
        for batch in in_batches(images, options.batch_size):
            pictures += [image.sample.rgb(resolution) for image in batch]
            x = latents_of(pipe, pictures[-len(batch) :], device)
            for name, texts in {"caption": [i.caption for i in batch], "empty": [""] * len(batch)}.items():
                embedding = embed(pipe, texts, device)
                found[name].append(critical_scale(denoise, x, embedding, levels, scale.criterion))
                bar.update(len(batch))
    joined = {
        name: [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]
        for name, parts in found.items()
    }
    rows = pd.DataFrame({
        "id": [image.sample.id for image in images],
        "caption": [image.caption for image in images],
        "group": [image.group for image in images],
        "times_shown": [image.times_shown for image in images],
        **{f"sigma_{name}": whole for name, (whole, _, _) in joined.items()},
        "evaluations": sum(count for _, _, count in joined.values()),
    })  # fmt: skip
    return Scales(options, rows, {name: local for name, (_, local, _) in joined.items()}, levels, pictures)
