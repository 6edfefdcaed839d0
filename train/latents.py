"""Data module of cached latents and text embeddings, with the exposure of each image planned to the draw."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import lightning.pytorch as pl
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm

from data.captioned import CaptionedImages, Sample, load_captioned
from data.exposure import Exposure

if TYPE_CHECKING:
    from train.finetune import Finetune


class PlannedDraws(DistributedSampler):
    """This rank's draws of the exposure stream: those after `done` of the run's `batches`.

    A global batch is `batch_size * num_replicas` consecutive draws, dealt out to the ranks in turn. Being a
    DistributedSampler, Lightning leaves it as it is. The length is that of the whole run, because Lightning
    counts on from the batch where a run was cut.
    """

    def __init__(
        self, stream: Iterator[int], batches: int, done: int, batch_size: int, num_replicas: int, rank: int
    ):  # no super().__init__: that one samples a data set, this one a stream
        self.stream, self.batches, self.done, self.batch_size = stream, batches, done, batch_size
        self.num_replicas, self.rank = num_replicas, rank

    def __iter__(self) -> Iterator[int]:
        draws = (self.batches - self.done) * self.batch_size * self.num_replicas
        for number, index in zip(range(draws), self.stream, strict=False):
            if number % self.num_replicas == self.rank:
                yield index

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """The stream goes on by itself."""


class CachedLatents(Dataset):
    """Batches of {index, mean, std, embedding}; mean and std are (B, sides, C, H, W), side 1 is mirrored."""

    def __init__(self, cache: dict[str, Tensor]):
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache["caption"])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        index = torch.tensor(indices)
        return {
            "index": index,
            "mean": self.cache["mean"][index].float(),
            "std": self.cache["std"][index].float(),
            "embedding": self.cache["embedding"][self.cache["caption"][index]].float(),
        }


class LatentData(pl.LightningDataModule):
    """Captioned images as the UNet sees them, duplicated as `exposure` says.

    Args:
        sources: the images of interest, as `data.captioned.load_captioned` takes them: shards, folders,
            parquet files, hf:owner/name.
        limit: take only this many of them, chosen by seed.
        ordinary: sources of ordinary images, mixed in by `exposure.ordinary_share`.
        exposure: copies, weights and shares.
        resolution: side in pixels; null: the UNet's own.
        batch_size: images per step and device.
        flip: mirror half of the images (both variants are cached).
        cache: folder of the cached tensors, keyed by data, models and resolution.
        seed: chooses the subset, the duplicated ones and the order.
    """

    def __init__(
        self,
        sources: list[str],
        limit: int | None = None,
        ordinary: list[str] | None = None,
        exposure: Exposure = Exposure(),  # noqa: B008  (frozen)
        resolution: int | None = None,
        batch_size: int = 16,
        flip: bool = False,
        cache: str = "outputs/cache",
        seed: int = 0,
    ):
        super().__init__()
        self.sources, self.limit, self.ordinary = sources, limit, ordinary or []
        self.exposure, self.resolution, self.batch_size, self.flip = exposure, resolution, batch_size, flip
        self.cache_folder, self.seed = Path(cache), seed
        if bool(self.ordinary) != bool(exposure.ordinary_share):
            raise ValueError(
                "data.ordinary and data.exposure.ordinary_share need each other: give both or neither"
            )

    def load(self) -> None:
        """Read the images: `images` (of interest) first, then `ordinary_images`."""
        import numpy as np

        images = load_captioned(*self.sources)
        if self.limit is not None:
            if not 1 <= self.limit <= len(images):
                raise ValueError(f"data.limit is {self.limit}, but {self.sources} hold {len(images)} images")
            chosen = np.sort(np.random.default_rng([self.seed, 0]).permutation(len(images))[: self.limit])
            images = CaptionedImages([images[index] for index in chosen], images.skipped)
        self.images = images
        self.ordinary_images = load_captioned(*self.ordinary) if self.ordinary else CaptionedImages([])
        self.everything = CaptionedImages(images.samples + self.ordinary_images.samples)
        if len(self.everything.position) < len(self.everything):
            raise ValueError("data.sources and data.ordinary share ids: an image would be both")

    def setup(self, stage: str) -> None:
        self.load()
        module: Finetune = self.trainer.lightning_module
        resolution = self.resolution or module.native_resolution
        self.fingerprint = fingerprint(self.everything, module.encoder_fingerprint(), resolution, self.flip)
        path = self.cache_folder / f"{self.fingerprint}.safetensors"
        if self.trainer.is_global_zero and not path.exists():
            write_cache(
                path, module, self.everything, resolution, self.flip, self.trainer.strategy.root_device
            )
        self.trainer.strategy.barrier()
        with safe_open(path, "pt") as file:  # memory-mapped
            self.train = CachedLatents({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118

    def shown_first(self, count: int) -> list[Sample]:
        """Some of the duplicated images: what to look at while training."""
        chosen = self.exposure.duplicated(len(self.images), self.seed)[:count]
        return [self.images[index] for index in chosen]

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        if trainer.max_steps < 1:
            raise ValueError("trainer.max_steps must be set: it says how often the data is gone through")
        micro = trainer.accumulate_grad_batches
        batches, done = trainer.max_steps * micro, trainer.global_step * micro
        draws = self.exposure.stream(
            len(self.images),
            len(self.ordinary_images),
            self.seed,
            done * self.batch_size * trainer.world_size,
        )
        sampler = PlannedDraws(draws, batches, done, self.batch_size, trainer.world_size, trainer.global_rank)
        return DataLoader(
            self.train, batch_size=self.batch_size, sampler=sampler, collate_fn=lambda batch: batch
        )


def fingerprint(images: CaptionedImages, models: str, resolution: int, flip: bool) -> str:
    """Of all that the cache depends on; a change in any gives another file."""
    digest = hashlib.sha256(f"{models}|{resolution}|{flip}|2".encode())
    for sample in images.samples:
        digest.update(sample.id.encode() + b"\0" + sample.caption.encode() + b"\0")
        digest.update(hashlib.sha256(sample.image).digest())
    return digest.hexdigest()[:20]


def write_cache(
    path: Path, module: "Finetune", images: CaptionedImages, resolution: int, flip: bool, device: torch.device
) -> None:
    """Encode all images (and mirrored ones) and each distinct caption once; 16-bit on disk."""
    batch = 32
    means, stds = [], []
    for start in tqdm(range(0, len(images), batch), desc="encode images"):
        samples = images.samples[start : start + batch]
        pixels = torch.stack([torch.from_numpy(sample.pixels(resolution)) for sample in samples])
        sides = [module.encode_images(pixels, device)]
        if flip:
            sides.append(module.encode_images(pixels.flip(-1), device))
        means.append(torch.stack([mean for mean, _ in sides], 1).half().cpu())  # (B, sides, C, h, w)
        stds.append(torch.stack([std for _, std in sides], 1).half().cpu())
    captions = sorted({sample.caption for sample in images.samples})
    index = {caption: number for number, caption in enumerate(captions)}
    embeddings = [
        module.encode_prompts(captions[start : start + batch], device).half().cpu()
        for start in tqdm(range(0, len(captions), batch), desc="encode captions")
    ]
    tensors = {
        "mean": torch.cat(means),
        "std": torch.cat(stds),
        "embedding": torch.cat(embeddings),
        "caption": torch.tensor([index[sample.caption] for sample in images.samples]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{uuid4().hex[:8]}.part")  # two runs may fill one cache at a time
    save_file(tensors, part)
    part.rename(path)
