"""Alignment of images with their prompts: CLIP cosine."""

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.batches import in_batches
from data.files import bytes_of, digest, one_line
from infer.metrics.similarity import embed_all
from infer.models.weights import check_safetensors, is_hub_id, quiet_bars

OPEN_CLIP = "open_clip:"


def check_clip(model: str) -> None:
    """Check that `model` can be a CLIP model, without loading it; Hub ids pass.

    Raises FileNotFoundError for a local folder without a model, ValueError for open_clip without its package.
    """
    if model.startswith(OPEN_CLIP):
        name, _, weights = model.removeprefix(OPEN_CLIP).partition("/")
        if not name or not weights:
            raise ValueError(
                f"{model!r}: give {OPEN_CLIP}MODEL/WEIGHTS, as open_clip:ViT-H-14/laion2b_s32b_b79k"
            )
        if find_spec("open_clip") is None:
            raise ValueError(
                f"{model!r} needs the package open_clip_torch: pip install 'attraction-basin[open_clip]'"
            )
    elif not is_hub_id(model) and not Path(model, "config.json").is_file():
        raise FileNotFoundError(
            f"no CLIP model folder {model!r}: give a transformers CLIPModel folder or a Hub id"
        )
    elif not is_hub_id(model):
        check_safetensors(Path(model))


class Towers(NamedTuple):
    """A CLIP model.

    Attributes:
        model: its weights.
        images: embeds images, (B, D).
        texts: embeds texts, (B, D).
        too_long: whether a text has more tokens than the model reads.
        preparation: how images are prepared, as text or a function.
    """

    model: torch.nn.Module
    images: Callable[[list[Image.Image]], Tensor]
    texts: Callable[[list[str]], Tensor]
    too_long: Callable[[str], bool]
    preparation: Any


def transformers_towers(name: str, device: str) -> Towers:
    """A CLIPModel folder or Hub id with its own tokenizer and image statistics."""
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    with quiet_bars():
        model = CLIPModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True).eval().to(device)
        tokenizer = CLIPTokenizer.from_pretrained(name)
        processor = CLIPImageProcessorPil.from_pretrained(name)

    def images(batch: list[Image.Image]) -> Tensor:
        pixels = processor(images=batch, return_tensors="pt").pixel_values
        return model.get_image_features(pixels.to(device)).pooler_output

    def texts(batch: list[str]) -> Tensor:
        tokens = tokenizer(batch, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return model.get_text_features(tokens.to(device)).pooler_output

    def too_long(text: str) -> bool:
        return len(tokenizer(text, verbose=False).input_ids) > tokenizer.model_max_length

    return Towers(model, images, texts, too_long, processor.to_json_string())


def open_clip_towers(name: str, device: str) -> Towers:
    """MODEL/WEIGHTS of the package open_clip_torch; WEIGHTS is one of its tags or a file."""
    import open_clip

    architecture, _, weights = name.removeprefix(OPEN_CLIP).partition("/")
    model, _, prepare = open_clip.create_model_and_transforms(architecture, pretrained=weights, device=device)
    model, tokenize = model.eval(), open_clip.get_tokenizer(architecture)

    def images(batch: list[Image.Image]) -> Tensor:
        return model.encode_image(torch.stack([prepare(image) for image in batch]).to(device))

    def texts(batch: list[str]) -> Tensor:
        return model.encode_text(tokenize(batch).to(device))

    def too_long(text: str) -> bool:  # the last token is padding, 0, in texts that fit
        return bool(tokenize([text])[0, -1])

    return Towers(model, images, texts, too_long, prepare)


class ClipScore:
    """Cosine of CLIP's image and text embeddings (Hessel et al. 2021, without its scale of 2.5), in [-1, 1].

    Args:
        model: transformers CLIPModel folder or Hub id, or open_clip:MODEL/WEIGHTS of open_clip_torch.
        device: where it runs.
    """

    def __init__(self, model: str, device: str = "cpu"):
        check_clip(model)
        load = open_clip_towers if model.startswith(OPEN_CLIP) else transformers_towers
        try:
            self.towers = load(model, device)
        except Exception as error:  # each library has its own kinds
            raise FileNotFoundError(f"cannot load CLIP {model!r}: {one_line(error)}") from error

    @torch.no_grad()
    def cosines(self, image_features: Tensor, prompts: list[str], batch_size: int = 64) -> np.ndarray:
        """Cosines of image features (N, D) with their prompts, (N,)."""
        texts = [self.towers.texts(batch).float().cpu() for batch in in_batches(prompts, batch_size)]
        return F.cosine_similarity(image_features, torch.cat(texts)).numpy()

    @torch.no_grad()
    def image_features(self, images: Iterable[Image.Image], batch_size: int = 64) -> Tensor:
        """Projected embeddings, not of unit length, (N, D)."""
        return embed_all(images, lambda batch: self.towers.images(batch).float().cpu(), batch_size)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights and of how images are prepared."""
        preparation = re.sub(r" at 0x[0-9a-f]+", "", str(self.towers.preparation))  # addresses of functions
        weights = sorted(self.towers.model.state_dict().items())
        return digest(preparation, *(digest(name, bytes_of(weight.float())) for name, weight in weights))
