"""Requests -> images, with a loaded pipeline: what predicting and watching a training share."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised, denoise
from infer.denoising.noise import initial_noise
from infer.denoising.requests import Request
from infer.models.weights import no_warnings


def embed(pipe: Any, texts: Sequence[str], device: torch.device) -> Tensor:
    """Text embeddings, (len(texts), tokens, width). A text that comes again is encoded once."""
    distinct = list(dict.fromkeys(texts))
    with no_warnings():  # too long prompts are reported once, not at each batch by two libraries
        embedded, _ = pipe.encode_prompt(distinct, device, 1, do_classifier_free_guidance=False)
    return embedded[torch.tensor([distinct.index(text) for text in texts], device=device)]


def side_of(pipe: Any, resolution: int | None) -> int:
    """The side in pixels: the resolution, or else the UNet's own; ValueError for one that cannot be made."""
    unit = pipe.vae_scale_factor
    size = pipe.unet.config.sample_size
    if isinstance(size, list | tuple) and len(set(size)) == 1:
        size = size[0]
    if resolution is None and not isinstance(size, int):
        raise ValueError(f"the UNet's sample_size is {size}, which is no side of a square: give resolution")
    side = size * unit if resolution is None else resolution
    if side < unit or side % unit:
        raise ValueError(f"resolution must be a multiple of {unit} pixels, not {side}")
    return side


def encode(
    pipe: Any, requests: Sequence[Request], resolution: int, device: torch.device, negative_prompt: str = ""
) -> tuple[Tensor, list[torch.Generator], Tensor, Tensor]:
    """Noise, generators after it, and the embeddings: negative or empty prompts', and prompts'."""
    conditional = embed(pipe, [request.prompt for request in requests], device)
    negatives = [negative_prompt if r.negative_prompt is None else r.negative_prompt for r in requests]
    side = resolution // pipe.vae_scale_factor
    shape = (pipe.unet.config.in_channels, side, side)
    noise, generators = initial_noise([request.seed for request in requests], shape, conditional.dtype)
    return noise.to(device), generators, embed(pipe, negatives, device), conditional


@torch.no_grad()
def make_images(
    pipe: Any,
    device: torch.device,
    requests: Sequence[Request],
    resolution: int,
    guidance_scale: float,
    num_inference_steps: int,
    negative_prompt: str = "",
    rules: Sequence[GuidanceRule] = (),
    bar: tqdm | None = None,
) -> tuple[list[Image], Denoised]:
    """One image per request, as stock diffusers would make it where no rule changes the guidance.

    `pipe` is a StableDiffusionPipeline on `device`; `resolution` is in pixels; `negative_prompt` is for
    requests without one of their own. Latents that are not finite give a black image; `failed_at` tells.
    """
    negatives = [negative_prompt if r.negative_prompt is None else r.negative_prompt for r in requests]
    asked = [r._replace(negative_prompt=text) for r, text in zip(requests, negatives, strict=True)]
    for rule in rules:
        rule.prepare(pipe, asked, device)
    noise, generators, *embeddings = encode(pipe, asked, resolution, device)
    denoised = denoise(
        pipe.unet,
        pipe.scheduler,
        noise,
        *embeddings,
        guidance_scale,
        num_inference_steps,
        rules,
        generators,
        bar,
    )
    failed = (denoised.failed_at >= 0).to(device).view(-1, 1, 1, 1)
    decoded = pipe.vae.decode(
        denoised.latents.masked_fill(failed, 0) / pipe.vae.config.scaling_factor, return_dict=False
    )[0]
    return pipe.image_processor.postprocess(decoded.masked_fill(failed, -1), output_type="pil"), denoised
