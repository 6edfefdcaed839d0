"""How well images fit their prompts: CLIP cosine."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from infer.similarity import in_batches


class ClipScore:
    """Cosine of CLIP's image and text embeddings (Hessel et al. 2021, without its scale of 2.5), in [-1, 1].

    Works with any transformers CLIPModel folder or Hub id: its own tokenizer and image statistics are used.
    """

    def __init__(self, model: str):
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        if model.startswith((".", "/", "data/", "outputs/")) and not Path(model).is_dir():
            raise FileNotFoundError(
                f"no CLIP model folder {model!r}: give a transformers CLIPModel folder or a Hub id"
            )
        self.model = CLIPModel.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(model)
        self.processor = CLIPImageProcessorPil.from_pretrained(model)

    @torch.no_grad()
    def __call__(self, images: list[Image.Image], prompts: list[str], batch_size: int = 64) -> np.ndarray:
        """(N,) cosines."""
        scores = []
        for pairs in in_batches(zip(images, prompts, strict=True), batch_size):
            batch, texts = map(list, zip(*pairs, strict=True))
            tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
            pixels = self.processor(images=batch, return_tensors="pt").pixel_values
            output = self.model(input_ids=tokens.input_ids, pixel_values=pixels)
            scores.append(F.cosine_similarity(output.image_embeds, output.text_embeds))
        return torch.cat(scores).numpy()
