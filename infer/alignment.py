"""How well images fit their prompts: CLIP cosine."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data.weights import is_hub_id, quiet_bars
from infer.similarity import in_batches


def check_clip(model: str) -> None:
    """FileNotFoundError for a local folder that is missing. Hub ids pass."""
    if not is_hub_id(model) and not Path(model).is_dir():
        raise FileNotFoundError(
            f"no CLIP model folder {model!r}: give a transformers CLIPModel folder or a Hub id"
        )


class ClipScore:
    """Cosine of CLIP's image and text embeddings (Hessel et al. 2021, without its scale of 2.5), in [-1, 1].

    Works with any transformers CLIPModel folder or Hub id: its own tokenizer and image statistics are used.
    """

    def __init__(self, model: str):
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        check_clip(model)
        try:
            with quiet_bars():
                self.model = CLIPModel.from_pretrained(model, dtype=torch.float32).eval()
                self.tokenizer = CLIPTokenizer.from_pretrained(model)
                self.processor = CLIPImageProcessorPil.from_pretrained(model)
        except OSError as error:
            raise FileNotFoundError(f"cannot load CLIP {model!r}: {str(error).splitlines()[0]}") from error

    @torch.no_grad()
    def __call__(self, images: Iterable[Image.Image], prompts: list[str], batch_size: int = 64) -> np.ndarray:
        """(N,) cosines."""
        scores = []
        for pairs in in_batches(zip(images, prompts, strict=True), batch_size):
            batch, texts = map(list, zip(*pairs, strict=True))
            tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
            pixels = self.processor(images=batch, return_tensors="pt").pixel_values
            output = self.model(input_ids=tokens.input_ids, pixel_values=pixels)
            scores.append(F.cosine_similarity(output.image_embeds, output.text_embeds))
        return torch.cat(scores).numpy()
