"""The nearest ordinary caption of a prompt, by the text encoder's own pooled embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data.prompts import load_prompts


@torch.no_grad()
def pooled(pipe: Any, texts: Sequence[str], device: torch.device, batch_size: int = 256) -> Tensor:
    """Pooled text embeddings of unit length, (N, width)."""
    out = []
    for start in tqdm(range(0, len(texts), batch_size), "captions", leave=False, disable=len(texts) < 2000):
        tokens = pipe.tokenizer(
            list(texts[start : start + batch_size]),
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        out.append(pipe.text_encoder(tokens.input_ids.to(device)).pooler_output.float())
    return F.normalize(torch.cat(out))


def same(text: str) -> str:
    """What two captions that say the same have in common: letters without case, single spaces."""
    return " ".join(text.casefold().split())


@dataclass
class CaptionBank:
    """Ordinary captions and their embeddings, with what embeds a prompt alike."""

    pipe: Any
    device: torch.device
    texts: list[str]
    embeddings: Tensor

    @classmethod
    def embed(
        cls, pipe: Any, device: torch.device, captions: str, exclude: str | None, max_cosine: float
    ) -> "CaptionBank":
        """Captions of a source, but for the excluded ones and those nearer to one of them than `max_cosine`.

        ValueError where none is left.
        """
        banned = [prompt.text for prompt in load_prompts(exclude)] if exclude else []
        out = {same(text) for text in banned}
        texts = list(dict.fromkeys(p.text for p in load_prompts(captions) if same(p.text) not in out))
        if texts:
            embeddings = pooled(pipe, texts, device)
            if banned:
                kept = (embeddings @ pooled(pipe, banned, device).T).amax(1) <= max_cosine
                texts = [text for text, keep in zip(texts, kept.tolist(), strict=True) if keep]
                embeddings = embeddings[kept]
        if not texts:
            raise ValueError(f"{captions!r} has no caption that {exclude!r} does not exclude")
        return cls(pipe, device, texts, embeddings)

    def nearest(self, prompts: Sequence[str], min_cosine: float, max_cosine: float) -> list[str | None]:
        """For each prompt the nearest other caption within the two cosines; None where there is none."""
        cosine = pooled(self.pipe, prompts, self.device) @ self.embeddings.T
        cosine = cosine.masked_fill(cosine > max_cosine, -torch.inf)
        best = cosine.max(1)
        return [
            self.texts[index] if value >= min_cosine and same(self.texts[index]) != same(prompt) else None
            for prompt, value, index in zip(prompts, best.values.tolist(), best.indices.tolist(), strict=True)
        ]
