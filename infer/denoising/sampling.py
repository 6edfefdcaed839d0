"""Requests -> images, with a loaded pipeline."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from data.cli import warn_no_effect
from infer.denoising.hooks import GuidanceRule, overrides
from infer.denoising.loop import Denoised, denoise
from infer.denoising.noise import initial_noise
from infer.denoising.requests import Request, with_negative_prompt
from infer.models.weights import no_warnings

warn_once = cache(warn_no_effect)  # not at each batch


def embed(pipe: Any, texts: Sequence[str], device: torch.device) -> Tensor:
    """Text embeddings, (len(texts), tokens, width). A text that comes again is encoded once."""
    distinct = list(dict.fromkeys(texts))
    with no_warnings():  # too long prompts are reported once, not at each batch by two libraries
        embedded, _ = pipe.encode_prompt(distinct, device, 1, do_classifier_free_guidance=False)
    return embedded[torch.tensor([distinct.index(text) for text in texts], device=device)]


def resolution_of(pipe: Any, resolution: int | None) -> int:
    """Side of the images in pixels: the resolution, or else the UNet's own.

    Any multiple of the VAE's factor: the UNet pads sizes that its blocks do not divide. `pipe` is a pipeline,
    or anything with `vae_scale_factor` and `unet.config.sample_size`. ValueError for a size that cannot be.
    """
    unit, size = pipe.vae_scale_factor, pipe.unet.config.sample_size
    if isinstance(size, list | tuple) and len(set(size)) == 1:
        size = size[0]
    if resolution is None and not isinstance(size, int):
        raise ValueError(f"the UNet's sample_size is {size}, which is not a square: give resolution")
    pixels = size * unit if resolution is None else resolution
    if pixels < unit or pixels % unit:
        raise ValueError(f"resolution must be a multiple of {unit} pixels, not {pixels}")
    return pixels


def encode(
    pipe: Any, requests: Sequence[Request], resolution: int, device: torch.device
) -> tuple[Tensor, list[torch.Generator], Tensor, Tensor]:
    """Noise, generators after it, and the embeddings: negative or empty prompts', and prompts'."""
    conditional = embed(pipe, [request.prompt for request in requests], device)
    unconditional = embed(pipe, [request.negative_prompt or "" for request in requests], device)
    height = resolution // pipe.vae_scale_factor
    shape = (pipe.unet.config.in_channels, height, height)
    noise, generators = initial_noise([request.seed for request in requests], shape, conditional.dtype)
    return noise.to(device), generators, unconditional, conditional


@torch.no_grad()
def denoise_requests(
    pipe: Any, device: torch.device, requests: Sequence[Request], resolution: int, guidance_scale: float,
    num_inference_steps: int, negative_prompt: str = "", rules: Sequence[GuidanceRule] = (),
    bar: tqdm | None = None,
) -> Denoised:  # fmt: skip
    """Denoised latents of each request, as of stock diffusers where no rule changes the guidance.

    `pipe` is a StableDiffusionPipeline on `device`; `resolution` is in pixels; `negative_prompt` is for
    requests without one of their own.
    """
    requests = with_negative_prompt(requests, negative_prompt)
    conditional_only = guidance_scale == 1 and not any(overrides(rule, "guidance_scale") for rule in rules)
    if conditional_only and any(request.negative_prompt for request in requests):
        warn_once("negative_prompt", "guidance_scale is 1: only the conditional prediction is used")
    for rule in rules:
        requests = rule.change_prompts(pipe, requests)
    for rule in rules:
        rule.prepare(pipe, requests, device)
    noise, generators, *embeddings = encode(pipe, requests, resolution, device)
    return denoise(
        pipe.unet, pipe.scheduler, noise, *embeddings, guidance_scale, num_inference_steps, rules, generators,
        bar,
    )  # fmt: skip


@torch.no_grad()
def make_images(pipe: Any, *args: Any, **options: Any) -> tuple[list[Image], Denoised]:
    """One image per request; the arguments are those of `denoise_requests`.

    Where latents or pixels are not finite the image is black: `failed_at`.
    """
    return decode(pipe, denoise_requests(pipe, *args, **options))


def decode(pipe: Any, denoised: Denoised) -> tuple[list[Image], Denoised]:
    """The images, black where latents or pixels are not finite; pixels fail at the last step."""
    failed = (denoised.failed_at >= 0).to(denoised.latents.device).view(-1, 1, 1, 1)
    latents = denoised.latents.masked_fill(failed, 0) / pipe.vae.config.scaling_factor
    decoded = pipe.vae.decode(latents, return_dict=False)[0]
    failed |= ~decoded.isfinite().flatten(1).all(1).view(-1, 1, 1, 1)
    last = denoised.timesteps.shape[1] - 1
    failed_at = torch.where(failed.flatten().cpu() & (denoised.failed_at < 0), last, denoised.failed_at)
    images = pipe.image_processor.postprocess(decoded.masked_fill(failed, -1), output_type="pil")
    return images, replace(denoised, failed_at=failed_at)
