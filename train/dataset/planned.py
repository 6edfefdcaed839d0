"""Data module of captioned images as the UNet sees them, with the exposure of each planned to the draw."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from data.captioned import CaptionedImages, Sample, load_captioned
from data.captions import Captioning, Captions
from data.exposure import Exposure
from infer.models.pipeline import too_long
from train.dataset.cache import SHARD, Shards, check_room, content_key, fill, key_of, missing_shards
from train.dataset.draws import Drawn, PlannedDraws, stacked
from train.dataset.encoders import encode_images, encode_prompts, text_key, vae_key

if TYPE_CHECKING:
    from train.finetune import Finetune


log = logging.getLogger(__name__)


class LatentData(pl.LightningDataModule):
    """Captioned images as the UNet sees them, duplicated as `exposure` says.

    Args:
        sources: the images of interest, as `data.captioned.load_captioned` takes them: shards, folders,
            parquet files, hf:owner/name.
        limit: take only this many of them, chosen by seed.
        ordinary: sources of ordinary images, mixed in by `exposure.ordinary_share`.
        exposure: copies, weights and shares.
        captions: what is said of an image: levels of caption, edits, triggers.
        resolution: side in pixels; null: the UNet's own.
        batch_size: images per step and device.
        flip: mirror half of the images (both variants are cached).
        cache: folder of the cached latents and text embeddings, keyed by data, models and resolution, and
            shared by all machines; null: each batch is encoded anew. Captions are in any case where they
            change from draw to draw, or the text encoder is trained.
        cache_dtype: of the cached numbers; float16 rounds them by 0.05 % at most.
        workers: processes per device that read (and without a cache, decode) ahead.
        seed: chooses the subset, the duplicated ones, the captions and the order.
    """

    def __init__(
        self,
        sources: list[str],
        limit: int | None = None,
        ordinary: list[str] | None = None,
        exposure: Exposure = Exposure(),  # noqa: B008  (frozen)
        captions: Captioning = Captioning(),  # noqa: B008  (frozen)
        resolution: int | None = None,
        batch_size: int = 16,
        flip: bool = False,
        cache: str | None = "outputs/cache",
        cache_dtype: Literal["float16", "float32"] = "float16",
        workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        self.sources, self.limit, self.ordinary = sources, limit, ordinary or []
        self.exposure, self.captioning, self.seed = exposure, captions, seed
        self.resolution, self.batch_size, self.flip, self.workers = resolution, batch_size, flip, workers
        self.cache_folder, self.cache_dtype = cache and Path(cache), getattr(torch, cache_dtype)
        self.shown = 0  # draws of the run before this start
        if bool(self.ordinary) != bool(exposure.ordinary_share):
            raise ValueError(
                "data.ordinary and data.exposure.ordinary_share need each other: give both or neither"
            )
        if resolution is not None and resolution < 1:
            raise ValueError(f"data.resolution must be at least 1, not {resolution}; null is the UNet's own")
        if seed < 0:
            raise ValueError(f"data.seed must be at least 0, not {seed}")
        if batch_size < 1 or workers < 0:
            raise ValueError(
                f"data.batch_size must be at least 1 and workers 0, not {batch_size} and {workers}"
            )
        if cache is None and cache_dtype != "float16":
            raise ValueError("data.cache_dtype has no effect without data.cache: leave one out")

    def load(self) -> None:
        """Read the images: `images` (of interest) first, then `ordinary_images`."""
        images = load_captioned(*self.sources)
        if self.limit is not None:
            if not 1 <= self.limit <= len(images):
                raise ValueError(f"data.limit is {self.limit}, but {self.sources} hold {len(images)} images")
            chosen = np.sort(np.random.default_rng([self.seed, 0]).permutation(len(images))[: self.limit])
            images = CaptionedImages([images[index] for index in chosen], images.skipped, images.layouts)
        self.images = images
        self.ordinary_images = load_captioned(*self.ordinary) if self.ordinary else CaptionedImages([])
        self.everything = CaptionedImages(images.samples + self.ordinary_images.samples)
        if len(self.everything.position) < len(self.everything):
            raise ValueError("data.sources and data.ordinary share ids: an image would be both")

    def captions_with(self, tokenizer: Any) -> Captions:
        images, ordinary = self.images.samples, self.ordinary_images.samples
        return Captions(self.captioning, images, ordinary, self.exposure, self.seed, tokenizer)

    def check_batch(self, global_batch: int) -> None:
        """ValueError when one step would show more than there is in a pass."""
        draws = self.exposure.pass_length(len(self.images), self.seed)
        if global_batch > draws:
            raise ValueError(
                f"a step takes {global_batch} images (batch, devices and accumulation) and a pass over the "
                f"data has {draws}: lower data.batch_size, or give more images or data.exposure.copies"
            )

    def setup(self, stage: str) -> None:
        self.load()
        trainer = self.trainer
        self.check_batch(self.global_batch)
        module: Finetune = trainer.lightning_module
        resolution = self.resolution or module.native_resolution
        module.check_resolution(resolution)
        self.captions = self.captions_with(module.pipe.tokenizer)
        if trainer.is_global_zero and (long := too_long(module.pipe, self.captions.texts)):
            log.warning(
                "%d of %d captions are longer than the model reads: their ends are ignored (the first: %r)",
                len(long), len(self.captions.texts), long[0],
            )  # fmt: skip
        content = content_key(self.everything.samples)
        texts = [text for choices in self.captions.choices for text in choices]
        self.fingerprint = key_of(content, *(sample.id for sample in self.everything.samples), *texts)
        latents = embeddings = None
        if self.cache_folder:
            latents = self.cached_latents(module, content, resolution)
            if not (self.captioning.edits or module.text_encoder):
                embeddings = self.cached_embeddings(module)
        self.train = Drawn(self.everything.samples, self.captions, latents, embeddings, resolution, self.flip)

    def cached_latents(self, module: "Finetune", content: str, resolution: int) -> Shards:
        """{mean, std}: (images, sides, C, h, w)."""
        samples, device = self.everything.samples, self.trainer.strategy.root_device
        key = key_of(content, vae_key(module.pipe), resolution, self.flip, self.cache_dtype)

        def encode(numbers) -> dict[str, torch.Tensor]:
            pixels = stacked([samples[number] for number in numbers], resolution, self.flip)
            sides = [encode_images(module.pipe, side, device) for side in pixels.unbind(1)]
            kept = (torch.stack(each, 1).to("cpu", self.cache_dtype) for each in zip(*sides, strict=True))
            return dict(zip(("mean", "std"), kept, strict=True))

        return self.cached(self.cache_folder / f"latents-{key}", len(samples), encode, "images")

    def cached_embeddings(self, module: "Finetune") -> Shards:
        """{embedding}: (texts, tokens, width)."""
        texts, device = self.captions.texts, self.trainer.strategy.root_device
        key = key_of(text_key(module.pipe, texts), self.cache_dtype, *texts)

        def encode(numbers) -> dict[str, torch.Tensor]:
            encoded = encode_prompts(module.pipe, [texts[number] for number in numbers], device)
            return {"embedding": encoded.to("cpu", self.cache_dtype)}

        return self.cached(self.cache_folder / f"captions-{key}", len(texts), encode, "captions")

    def cached(self, folder: Path, rows: int, encode, name: str) -> Shards:
        """The folder's rows; what is missing is made by all processes together."""
        strategy = self.trainer.strategy
        missing, error = [], None
        # one process looks for all: another run may be writing, and a network's disk be slow to tell
        if strategy.is_global_zero:
            missing = missing_shards(folder, rows)
            try:
                if missing:
                    size = sum(value[0].nbytes for value in encode(range(1)).values())
                    check_room(folder, len(missing) * min(rows, SHARD), size, name)
            except ValueError as caught:
                error = caught
        missing, failed = strategy.broadcast((missing, error is not None))
        if error is not None:
            raise error
        if failed:  # one process says it
            raise SystemExit(1)
        if missing:
            own = missing[strategy.global_rank :: strategy.world_size]
            fill(folder, rows, own, encode, name, bar=strategy.global_rank == 0)
        strategy.barrier()
        return Shards(folder, rows)

    def shown_first(self, count: int) -> list[tuple[Sample, str]]:
        """Some of the duplicated images, with what they are called: what to look at while training."""
        chosen = self.exposure.duplicated(len(self.images), self.seed)[:count]
        return [(self.images[index], self.captions.first(index)) for index in chosen]

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        micro, world_size = trainer.accumulate_grad_batches, trainer.world_size
        batches, done = trainer.max_steps * micro, trainer.global_step * micro
        self.start = (trainer.global_step, self.shown)
        stream = self.exposure.stream(len(self.images), len(self.ordinary_images), self.seed, self.shown)
        sampler = PlannedDraws(
            stream, self.shown, batches, done, self.batch_size, world_size, trainer.global_rank
        )
        return DataLoader(
            self.train,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=as_it_is,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def state_dict(self) -> dict[str, int]:
        """Draws shown so far: a run goes on after them, also on another number of devices."""
        step, shown = self.start
        steps = self.trainer.global_step - step
        accumulated = self.trainer.accumulate_grad_batches
        return {"shown": shown + steps * self.global_batch, "accumulated": accumulated}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """ValueError where Lightning, which counts batches, would go on within a step."""
        before, now = state_dict["accumulated"], self.trainer.accumulate_grad_batches
        if before != now:
            raise ValueError(
                f"trainer.accumulate_grad_batches was {before} and is {now}: a run goes on with the one "
                "that it began with; change data.batch_size in another --out instead"
            )
        self.shown = state_dict["shown"]

    @property
    def global_batch(self) -> int:
        """Images of an optimizer step."""
        return self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def about(self) -> dict[str, object]:
        """For `provenance.json`."""
        return {
            "sources": self.sources,
            "ordinary": self.ordinary,
            "images": len(self.images),
            "ordinary_images": len(self.ordinary_images),
            "skipped": dict(self.images.skipped + self.ordinary_images.skipped),
            "data_fingerprint": self.fingerprint,
        }


def as_it_is(batch: dict) -> dict:
    """A function with a name, because workers may be spawned."""
    return batch
