"""The nearest ordinary caption of a prompt, by the text encoder's own pooled embedding."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data.prompts import load_prompts, same, without
from infer.models.pipeline import too_long

log = logging.getLogger(__name__)
COSINES = 2**24  # at once: 64 MiB


@torch.no_grad()
def pooled(pipe: Any, texts: Sequence[str], device: torch.device, batch_size: int = 256) -> Tensor:
    """Pooled text embeddings of unit length, (N, width)."""
    out = []
    for start in tqdm(range(0, len(texts), batch_size), "captions", leave=False, disable=len(texts) < 2000):
        tokens = pipe.tokenizer(
            list(texts[start : start + batch_size]), padding="max_length", truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        out.append(pipe.text_encoder(tokens.input_ids.to(device)).pooler_output.float())
    return F.normalize(torch.cat(out))


def cosines(left: Tensor, right: Tensor) -> Iterator[Tensor]:
    """Cosines of unit vectors, (rows of left, all of right): as many rows at once as memory is meant for."""
    for rows in left.split(max(1, COSINES // len(right))):
        yield rows @ right.T


@dataclass
class CaptionBank:
    """Ordinary captions and their embeddings, and the pipeline that embeds prompts in the same way."""

    pipe: Any
    device: torch.device
    texts: list[str]
    embeddings: Tensor

    def __post_init__(self) -> None:
        self.position = {same(text): number for number, text in enumerate(self.texts)}

    @classmethod
    def embed(
        cls, pipe: Any, device: torch.device, captions: str, exclude: str | None, max_cosine: float
    ) -> "CaptionBank":
        """Captions of a source, without the excluded ones and those nearer to one of them than `max_cosine`.

        ValueError where none is left.
        """
        excluded = load_prompts(exclude) if exclude else []
        banned = [prompt.text for prompt in excluded]
        texts = [prompt.text for prompt in without(load_prompts(captions), excluded)[0]]
        if texts:
            if long := too_long(pipe, texts):
                log.warning(
                    "%d of %d captions of %s are longer than the model reads: their ends are ignored "
                    "(the first: %r)", len(long), len(texts), captions, long[0],
                )  # fmt: skip
            embeddings = pooled(pipe, texts, device)
            if banned:
                nearest = [block.amax(1) for block in cosines(embeddings, pooled(pipe, banned, device))]
                kept = torch.cat(nearest) <= max_cosine
                texts = [text for text, keep in zip(texts, kept.tolist(), strict=True) if keep]
                embeddings = embeddings[kept]
        if not texts:
            raise ValueError(f"{captions!r} has no caption that {exclude!r} does not exclude")
        return cls(pipe, device, texts, embeddings)

    def nearest(self, prompts: Sequence[str], min_cosine: float, max_cosine: float) -> list[str | None]:
        """For each prompt the nearest other caption within the two cosines; None where there is none."""
        texts: list[str | None] = []
        for block in cosines(pooled(self.pipe, prompts, self.device), self.embeddings):
            keys = map(same, prompts[len(texts) : len(texts) + len(block)])
            block = block.masked_fill(block > max_cosine, -torch.inf)
            for row, key in enumerate(keys):
                if key in self.position:  # the prompt itself
                    block[row, self.position[key]] = -torch.inf
            best = block.max(1)
            texts += [
                self.texts[index] if value >= min_cosine else None
                for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        return texts
