"""Prompts and seeds -> images, with a loaded pipeline: what predicting and watching a training share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL.Image import Image

from infer.denoise import Denoised, GuidanceRule, denoise
from infer.seeds import initial_noise


@torch.no_grad()
def make_images(
    pipe: Any,
    device: torch.device,
    prompts: list[str],
    seeds: Sequence[int],
    resolution: int,
    guidance_scale: float,
    num_inference_steps: int,
    negative_prompt: str = "",
    rules: Sequence[GuidanceRule] = (),
    on_step: Callable[[], object] = lambda: None,
) -> tuple[list[Image], Denoised]:
    """One image per prompt and seed, as stock diffusers would make it where no rule changes the guidance.

    `pipe` is a StableDiffusionPipeline on `device`; `resolution` is in pixels. A prompt that comes again is
    encoded once.
    """
    texts = list(dict.fromkeys(prompts))
    conditional, unconditional = pipe.encode_prompt(
        texts, device, 1, do_classifier_free_guidance=True, negative_prompt=[negative_prompt] * len(texts)
    )
    rows = torch.tensor([texts.index(prompt) for prompt in prompts], device=device)
    side = resolution // pipe.vae_scale_factor
    shape = (pipe.unet.config.in_channels, side, side)
    noise, generators = initial_noise(seeds, shape, conditional.dtype)
    denoised = denoise(
        pipe.unet, pipe.scheduler, noise.to(device), unconditional[rows], conditional[rows],
        guidance_scale, num_inference_steps, rules, generators, on_step,
    )  # fmt: skip
    decoded = pipe.vae.decode(denoised.latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return pipe.image_processor.postprocess(decoded, output_type="pil"), denoised
