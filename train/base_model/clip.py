"""Train a small CLIP from nothing: text encoder of the bundled pipeline, and its alignment metric."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from data.captioned import load_captioned
from train.schedule import lr_schedule


def train_tokenizer(captions: list[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """A CLIPTokenizer (byte-level BPE, lower case) learned from the captions, padded to `length` tokens."""
    special = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    tokenizer = CLIPTokenizer(vocab=special, merges=[], model_max_length=length)
    return tokenizer.train_new_from_iterator([captions], vocabulary, show_progress=False)


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """Symmetric cross-entropy of image-text `logits` (B, B); `same` (B, B) is 1 where captions are equal.

    CLIP (Radford et al. 2021); targets are spread evenly over the true pairs, for an emoji has one caption in
    six styles.
    """
    target = same / same.sum(1, keepdim=True)
    return (
        -0.5 * ((target * logits.log_softmax(1)).sum(1) + (target * logits.t().log_softmax(1)).sum(1)).mean()
    )


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
        texts = sorted({sample.caption for sample in load_captioned(*captions).samples})
        self.tokenizer = train_tokenizer(texts, vocabulary, length)
        text = {
            **architecture["text_config"],
            "vocab_size": len(self.tokenizer),
            "max_position_embeddings": length,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        self.clip = CLIPModel(CLIPConfig(**{**architecture, "text_config": text}))

    def training_step(self, batch: dict, step: int) -> Tensor:
        tokens = self.tokenizer(
            batch["caption"], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        output = self.clip(input_ids=tokens.to(self.device), pixel_values=batch["pixels"].float() / 127.5 - 1)
        index = {caption: number for number, caption in enumerate(set(batch["caption"]))}
        caption = torch.tensor([index[text] for text in batch["caption"]], device=self.device)
        loss = contrastive_loss(output.logits_per_text, (caption[:, None] == caption).float())
        cosine = (output.image_embeds * output.text_embeds).sum(1).mean()
        self.log_dict({"loss": loss, "true_pair_cosine": cosine}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.clip.parameters(), self.lr, weight_decay=0.05)
        return lr_schedule(optimizer, "cosine", self.warmup_steps, self.trainer.max_steps)

    def export(self, folder: Path) -> None:
        """Write `clip/` (model, tokenizer, image processor), and `text_encoder/` and `tokenizer/` apart."""
        side = self.clip.config.vision_config.image_size
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        images = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, resample=3, **half
        )
        model = CLIPModel(self.clip.config)
        model.load_state_dict(self.clip.state_dict())
        model.half().save_pretrained(folder / "clip")
        images.save_pretrained(folder / "clip")
        self.tokenizer.save_pretrained(folder / "clip")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        CLIPTextModel.from_pretrained(folder / "clip", dtype=torch.float16).save_pretrained(
            folder / "text_encoder"
        )
