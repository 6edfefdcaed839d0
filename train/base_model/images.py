"""Data module of plain images and captions, for the autoencoder and the CLIP of a new base model."""

import lightning.pytorch as pl
import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.captioned import load_captioned


class Pixels(Dataset):
    """Decoded once: {id, pixels: uint8 (3, H, W), caption}: each visit draws one of an image's captions.

    Half of the visits are mirrored when `flip`.
    """

    def __init__(self, sources: list[str], resolution: int, flip: bool, limit: int | None = None):
        samples = load_captioned(*sources).samples[:limit]
        self.ids = [sample.id for sample in samples]
        self.captions = [sample.captions for sample in samples]
        self.pixels = np.stack([sample.pixels(resolution) for sample in tqdm(samples, desc="decode")])
        self.flip = flip

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        pixels = torch.from_numpy(self.pixels[index])
        if self.flip and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        captions = self.captions[index]
        caption = captions[int(torch.randint(len(captions), ()))]
        return {"id": self.ids[index], "pixels": pixels, "caption": caption}


class ImageData(pl.LightningDataModule):
    """Captioned images at one resolution.

    Args:
        sources: what `data.captioned.load_captioned` takes: shards, folders, parquet files, hf:owner/name.
        resolution: side in pixels.
        batch_size: images per step and device.
        flip: mirror half of the images.
        limit: the first so many images of the sources.
    """

    def __init__(
        self, sources: list[str], resolution: int = 64, batch_size: int = 16, flip: bool = True,
        limit: PositiveInt | None = None,
    ):  # fmt: skip
        super().__init__()
        self.sources, self.resolution, self.batch_size, self.flip = sources, resolution, batch_size, flip
        self.limit = limit

    def setup(self, stage: str) -> None:
        self.train = Pixels(self.sources, self.resolution, self.flip, self.limit)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Every image once, unmirrored."""
        plain = torch.utils.data.StackDataset(pixels=torch.from_numpy(self.train.pixels))
        return DataLoader(plain, batch_size=64)
