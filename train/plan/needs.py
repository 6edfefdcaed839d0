"""Bytes that a finetune needs, in memory and on disk."""

import torch

from data.regimes.captions import Captions
from train.dataset.planned import LatentData
from train.finetune import Finetune
from train.plan.sizes import FLOAT, Sizes, moments


def checkpoint_bytes(model: Finetune, known: Sizes, average: bool) -> int:
    """Trained weights, their average if one is kept (float32 each) and the optimizer's moments."""
    return FLOAT * (1 + average) * sum(known.trained) + moments(known.trained, model.optimizer)


def memory_bytes(
    model: Finetune, known: Sizes, average: bool, shards: int, live_images: bool, live_captions: bool
) -> int:
    """A checkpoint's content, gradients, and the frozen weights that each step needs.

    A lower bound: activations, copies in 16 bits and DDP's buckets come on top. An encoder whose outputs are
    cached stays in main memory.
    """
    frozen = known.vae if live_images else 0
    if model.lora_rank:
        frozen += known.unet + (known.text_encoder if model.train_text_encoder else 0)
    if live_captions and not model.train_text_encoder:
        frozen += known.text_encoder
    return (checkpoint_bytes(model, known, average) + FLOAT * sum(known.trained)) // shards + FLOAT * frozen


def export_bytes(model: Finetune, known: Sizes) -> int:
    """The whole pipeline in float32, and the LoRA that is fused into it."""
    lora = sum(known.trained) if model.lora_rank else 0
    return FLOAT * (known.unet + known.text_encoder + known.vae + lora)


def cached_captions(model: Finetune, data: LatentData, captions: Captions | None) -> int:
    """Number of cached embeddings: none where captions or their encoder change with each step."""
    if data.captions.edits or model.train_text_encoder:
        return 0
    # random tokens: one text an image
    return len(captions.texts) if captions else len(data.everything)


def cache_bytes(data: LatentData, known: Sizes, images: int, captions: int) -> int:
    """Mean and deviation of each image's latents (and of its mirrored one's), an embedding a caption."""
    channels, height, width = known.latent(data.resolution)
    latents = images * (1 + data.flip) * 2 * channels * height * width
    return getattr(torch, data.cache_dtype).itemsize * (latents + captions * known.tokens * known.width)
