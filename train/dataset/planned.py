"""Data module of captioned images as the UNet sees them, with the exposure of each planned to the draw."""

import logging
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader

from data.captioned import CaptionedImages, Sample, load_captioned
from data.disk import shows
from data.regimes.captions import Captioning, Captions
from data.regimes.exposure import Exposure
from data.repeats.pictures import without_repeats
from infer.denoising.sampling import resolution_of
from infer.models.pipeline import too_long
from train.dataset.cache import SHARD, Shards, check_room, fill, key_of, missing_shards, on_first_rank
from train.dataset.contents import check_same, contents_of
from train.dataset.draws import Drawn, PlannedDraws, stacked
from train.dataset.encoders import encode_images, encode_prompts, text_key, vae_key

log = logging.getLogger(__name__)


class LatentData(pl.LightningDataModule):
    """Captioned images as the UNet sees them, duplicated as `exposure` says.

    Args:
        sources: the images of interest, in any form that `data.captioned.load_captioned` reads: shards,
            folders, parquet files, hf:owner/name.
        limit: use only this many of them, chosen by seed.
        ordinary: sources of ordinary images, mixed in by `exposure.ordinary_share`.
        leave_out_repeats: leave out pictures that repeat an earlier one, the same or nearly (scaled, encoded
            anew) and under whatever caption, also ordinary ones that repeat one of interest.
        exposure: copies, weights and shares.
        captions: which caption an image is shown with: levels of caption, edits, triggers.
        resolution: side in pixels; null: the UNet's own.
        batch_size: images per step and device.
        flip: mirror half of the images (both variants are cached).
        cache: folder of the cached latents and text embeddings, keyed by data, models and resolution, and
            shared by all machines; null: each batch is encoded anew. Captions are encoded anew in any case
            where they change from draw to draw, or the text encoder is trained.
        cache_dtype: of the cached numbers; float16 rounds them by 0.05 % at most.
        workers: processes per device that read (and without a cache, decode) ahead.
        seed: chooses the subset, the duplicated images, the captions and the order.
    """

    def __init__(
        self,
        sources: list[str],
        limit: PositiveInt | None = None,
        ordinary: list[str] | None = None,
        leave_out_repeats: bool = False,
        exposure: Exposure = Exposure(),  # noqa: B008  (frozen)
        captions: Captioning = Captioning(),  # noqa: B008  (frozen)
        resolution: PositiveInt | None = None,
        batch_size: PositiveInt = 16,
        flip: bool = False,
        cache: str | None = "outputs/cache",
        cache_dtype: Literal["float16", "float32"] = "float16",
        workers: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
    ):
        super().__init__()
        self.sources, self.limit, self.ordinary = sources, limit, ordinary or []
        self.leave_out_repeats = leave_out_repeats
        self.exposure, self.captions, self.seed = exposure, captions, seed
        self.resolution, self.batch_size, self.flip, self.workers = resolution, batch_size, flip, workers
        self.cache, self.cache_dtype = cache, cache_dtype
        self.draws_shown = 0  # in the run before this start
        self.previous: dict[str, Any] | None = None  # state of the checkpoint that the run continues from
        if bool(self.ordinary) != bool(exposure.ordinary_share):
            raise ValueError(
                "data.ordinary and data.exposure.ordinary_share need each other: give both or neither"
            )

    def load(self) -> None:
        """Read the images: `images` (of interest) first, then `ordinary_images`."""
        images = load_captioned(*self.sources)
        ordinary = load_captioned(*self.ordinary) if self.ordinary else CaptionedImages([])
        if self.leave_out_repeats:
            images, ordinary = without_repeats(images, ordinary)
        if self.limit is not None:
            if self.limit > len(images):
                raise ValueError(f"data.limit is {self.limit}, but {self.sources} hold {len(images)} images")
            chosen = np.sort(np.random.default_rng([self.seed, 0]).permutation(len(images))[: self.limit])
            images = CaptionedImages([images[index] for index in chosen], images.skipped, images.layouts)
        self.images, self.ordinary_images = images, ordinary
        self.everything = CaptionedImages(images.samples + self.ordinary_images.samples)
        if len(self.everything.position) < len(self.everything):
            raise ValueError("data.sources and data.ordinary share ids: an image would be both")
        self.repeats = [
            [sample.repeats for sample in each.samples] for each in (images, self.ordinary_images)
        ]

    def captions_with(self, tokenizer: Any) -> Captions:
        images, ordinary = self.images.samples, self.ordinary_images.samples
        return Captions(self.captions, images, ordinary, self.exposure, self.seed, tokenizer)

    def setup(self, stage: str) -> None:
        self.load()
        trainer, samples = self.trainer, self.everything.samples
        module = trainer.lightning_module
        resolution = resolution_of(module.pipe, self.resolution)
        self.chosen_captions = self.captions_with(module.pipe.tokenizer)
        texts = self.chosen_captions.texts
        if trainer.is_global_zero and (long := too_long(module.pipe, texts)):
            text = "%d of %d captions are longer than the model reads: their ends are ignored (the first: %r)"
            log.warning(text, len(long), len(texts), shorten(long[0], 80, placeholder="..."))
        self.contents = contents_of(samples, self.chosen_captions.choices)
        self.fingerprint = key_of(*self.contents.values())
        if self.previous:
            check_same(self.previous["contents"], self.contents)
        latents = embeddings = None
        if self.cache:
            latents = self.cached_latents(module, resolution)
            if not (self.captions.edits or module.train_text_encoder):
                embeddings = self.cached_embeddings(module)
        self.dataset = Drawn(samples, self.chosen_captions, latents, embeddings, resolution, self.flip)

    def cached_latents(self, module: Any, resolution: int) -> Shards:
        """{mean, std}: (images, variants, C, h, w); {readable}: (images,)."""
        samples, device = self.everything.samples, self.trainer.strategy.root_device
        dtype = getattr(torch, self.cache_dtype)
        key = key_of(self.contents["images"], vae_key(module.pipe), resolution, self.flip, self.cache_dtype)

        def encode(numbers) -> dict[str, torch.Tensor]:
            pixels, readable = stacked([samples[number] for number in numbers], resolution, self.flip)
            variants = [encode_images(module.pipe, variant, device) for variant in pixels.unbind(1)]
            mean, std = (torch.stack(each, 1).to("cpu", dtype) for each in zip(*variants, strict=True))
            return {"mean": mean, "std": std, "readable": readable}

        return self.cached(f"latents-{key}", len(samples), encode, "images")

    def cached_embeddings(self, module: Any) -> Shards:
        """{embedding}: (texts, tokens, width)."""
        texts, device = self.chosen_captions.texts, self.trainer.strategy.root_device
        key = key_of(text_key(module.pipe, texts), self.cache_dtype, *texts)

        def encode(numbers) -> dict[str, torch.Tensor]:
            encoded = encode_prompts(module.pipe, [texts[number] for number in numbers], device)
            return {"embedding": encoded.to("cpu", getattr(torch, self.cache_dtype))}

        return self.cached(f"captions-{key}", len(texts), encode, "captions")

    def cached(self, name: str, rows: int, encode: Callable, what: str) -> Shards:
        """The rows of a folder in the cache; all processes together write what is missing."""
        strategy, folder = self.trainer.strategy, Path(self.cache, name)

        def missing() -> list[int]:
            if numbers := missing_shards(folder, rows):
                size = sum(value[0].nbytes for value in encode(range(1)).values())
                check_room(folder, len(numbers) * min(rows, SHARD), size, what)
            return numbers

        # the first process decides: another run may be writing, and a network's disk may be slow to show it
        if numbers := on_first_rank(strategy, missing):
            own = numbers[strategy.global_rank :: strategy.world_size]
            fill(folder, rows, own, encode, what, bar=strategy.global_rank == 0)
        strategy.barrier()
        if numbers:
            shows(lambda: not missing_shards(folder, rows))  # those of other machines, on a network disk
        return Shards(folder, rows)

    def watched(self, count: int) -> list[tuple[Sample, str]]:
        """The first duplicated images that can be decoded, with their captions, for the monitor."""
        chosen = self.exposure.is_duplicated(*self.repeats, self.seed).nonzero()[0]
        if not len(chosen):
            chosen = self.exposure.duplicated(len(self.images), self.seed)
        readable = (index for index in chosen if stacked([self.images[index]], 8, False)[1].all())
        return [
            (self.images[index], self.chosen_captions.first(index))
            for index, _ in zip(readable, range(count), strict=False)
        ]

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        micro, world_size = trainer.accumulate_grad_batches, trainer.world_size
        batches, done = trainer.max_steps * micro, trainer.global_step * micro
        if hasattr(self, "start"):  # a later epoch of this start
            self.draws_shown = self.state_dict()["shown"]
        self.start = trainer.global_step
        shown = self.exposure.stream(*self.repeats, self.seed, self.draws_shown)
        draws = enumerate(shown, self.draws_shown)
        sampler = PlannedDraws(draws, batches, done, self.batch_size, world_size, trainer.global_rank)
        return DataLoader(
            self.dataset, self.batch_size, sampler=sampler, collate_fn=dict, num_workers=self.workers,
            persistent_workers=self.workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Draws shown so far, after which a run continues, also on other devices; and the data's contents."""
        steps = self.trainer.global_step - self.start
        return {
            "shown": self.draws_shown + steps * self.global_batch,
            "accumulated": self.trainer.accumulate_grad_batches,
            "contents": self.contents,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise ValueError where Lightning, which counts batches, would continue within a step."""
        before, now = state_dict["accumulated"], self.trainer.accumulate_grad_batches
        if before != now:
            raise ValueError(
                f"trainer.accumulate_grad_batches was {before} and is {now}: a run keeps the one that it "
                "began with; change data.batch_size in another --out instead"
            )
        self.draws_shown = state_dict["shown"]

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
