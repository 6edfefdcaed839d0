"""Train a small CLIP from nothing: text encoder of the bundled pipeline, and its alignment metric."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from data.captioned import load_captioned
from infer.models.weights import no_warnings
from train.schedule import lr_schedule


def train_tokenizer(captions: list[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """A CLIPTokenizer (byte-level BPE, lower case) learned from the captions, padded to `length` tokens.

    As in OpenAI's CLIP, the vocabulary holds every byte twice: inside a word (`x`) and at its end (`x</w>`).
    So any prompt is read to its end. BPE training alone gives only the ends that the captions have, and what
    is unknown becomes the end token. What was learned from the captions follows.

    Args:
        captions: texts to learn from.
        vocabulary: largest number of tokens; the two special ones and the bytes are 514.
        length: tokens of a padded caption.
    """
    special = ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(special)})
    learned = tokenizer.train_new_from_iterator([captions], vocabulary, show_progress=False)
    letters = sorted(ByteLevel.alphabet())
    tokens = special + letters + [f"{letter}</w>" for letter in letters]
    merges = json.loads(learned.backend_tokenizer.to_str())["model"]["merges"]
    merges = [tuple(pair) for pair in merges[: max(vocabulary - len(tokens), 0)]]
    tokens = dict.fromkeys(tokens + ["".join(pair) for pair in merges])
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """Symmetric cross-entropy of image-text `logits` (B, B); `same` (B, B) is 1 where captions are equal.

    CLIP (Radford et al. 2021); targets are spread evenly over the true pairs, for an emoji has one caption in
    six styles.
    """
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


class ClipTraining(pl.LightningModule):
    """Contrastive training of transformers' CLIPModel.

    Args:
        architecture: `text_config`, `vision_config` and `projection_dim` of CLIPConfig, without vocabulary.
        captions: sources whose captions the tokenizer is learned from.
        vocabulary: largest number of tokens.
        length: tokens of a padded caption.
        lr: peak of the learning rate (linear warm-up, cosine to zero).
        warmup_steps: steps of the warm-up.
    """

    def __init__(
        self,
        architecture: dict[str, Any],
        captions: list[str],
        vocabulary: int = 3000,
        length: int = 16,
        lr: float = 1e-3,
        warmup_steps: int = 50,
    ):
        super().__init__()
        self.lr, self.warmup_steps = lr, warmup_steps
        self.architecture, self.captions = architecture, captions
        self.vocabulary, self.length = vocabulary, length

    def configure_model(self) -> None:
        if hasattr(self, "clip"):
            return
        texts = sorted({sample.caption for sample in load_captioned(*self.captions).samples})
        self.tokenizer = train_tokenizer(texts, self.vocabulary, self.length)
        tokens = {
            name: getattr(self.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        sizes = {"vocab_size": len(self.tokenizer), "max_position_embeddings": self.length}
        text = self.architecture["text_config"] | sizes | tokens
        self.clip = CLIPModel(CLIPConfig(**self.architecture | {"text_config": text}))

    def training_step(self, batch: dict, step: int) -> Tensor:
        captions = batch["caption"]
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        pixels = batch["pixels"].float() / 127.5 - 1
        output = self.clip(input_ids=tokens.input_ids.to(self.device), pixel_values=pixels)
        index = torch.tensor([captions.index(text) for text in captions], device=self.device)
        loss = contrastive_loss(output.logits_per_text, (index[:, None] == index).float())
        cosine = (output.image_embeds * output.text_embeds).sum(1).mean()
        self.log_dict({"loss": loss, "true_pair_cosine": cosine}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.clip.parameters(), self.lr, weight_decay=0.05)
        return lr_schedule(optimizer, "cosine", self.warmup_steps, self.trainer.max_steps)

    def export(self, folder: Path) -> None:
        """Write `clip/` (model, tokenizer, image processor), and `text_encoder/` and `tokenizer/` apart."""
        with no_warnings():  # of a library that is not needed here
            from transformers import CLIPImageProcessor

        size, half = self.clip.config.vision_config.image_size, [0.5] * 3
        crop = {"height": size, "width": size}
        images = CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size=crop, resample=3, image_mean=half, image_std=half
        )
        for part in (deepcopy(self.clip).half(), images, self.tokenizer):
            part.save_pretrained(folder / "clip")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        text_encoder = CLIPTextModel.from_pretrained(
            folder / "clip", dtype=torch.float16, use_safetensors=True
        )
        text_encoder.save_pretrained(folder / "text_encoder")
