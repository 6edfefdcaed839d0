"""Data module of plain images and captions, for the autoencoder and the CLIP of a new base model."""

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.captioned import load_captioned


class Pixels(Dataset):
    """Decoded once: {id, pixels: uint8 (3, H, W), caption}; half of the visits mirrored when `flip`."""

    def __init__(self, sources: list[str], resolution: int, flip: bool):
        images = load_captioned(*sources)
        self.ids = [sample.id for sample in images.samples]
        self.captions = [sample.caption for sample in images.samples]
        self.pixels = np.stack([sample.pixels(resolution) for sample in tqdm(images.samples, desc="decode")])
        self.flip = flip

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        pixels = torch.from_numpy(self.pixels[index])
        if self.flip and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        return {"id": self.ids[index], "pixels": pixels, "caption": self.captions[index]}


class ImageData(pl.LightningDataModule):
    """Captioned images at one resolution.

    Args:
        sources: what `data.captioned.load_captioned` takes: shards, folders, parquet files, hf:owner/name.
        resolution: side in pixels.
        batch_size: images per step and device.
        flip: mirror half of the images.
    """

    def __init__(self, sources: list[str], resolution: int = 64, batch_size: int = 16, flip: bool = True):
        super().__init__()
        self.sources, self.resolution, self.batch_size, self.flip = sources, resolution, batch_size, flip

    def setup(self, stage: str) -> None:
        self.train = Pixels(self.sources, self.resolution, self.flip)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Every image once, unmirrored."""
        plain = torch.utils.data.StackDataset(pixels=torch.from_numpy(self.train.pixels))
        return DataLoader(plain, batch_size=64)
