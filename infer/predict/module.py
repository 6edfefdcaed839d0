"""The Lightning module and data module of `python -m infer predict`."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any

import lightning.pytorch as pl
import torch
from PIL.Image import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from infer.index.guard import Guard, Guarded
from infer.models.memory import peak_gib, reset_peak
from infer.models.pipeline import too_long
from infer.options import ModelOptions
from infer.predict.options import GenerateOptions
from infer.predict.run_folder import done

log = logging.getLogger(__name__)


@dataclass
class Generated:
    """A batch of finished images and what happened on the way."""

    requests: list[Request]
    images: list[Image]
    denoised: Denoised
    seconds_per_image: float
    peak_memory_gib: float
    watched_space: str | None  # what the rules watched
    alternatives: list[str | None]  # the prompts that they guided towards while they waited
    guarded: Guarded | None = None  # what the guard says of the images, if there is one


class PromptData(pl.LightningDataModule):
    """The images of the options, but for those in the run folder already."""

    def __init__(self, options: GenerateOptions):
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # few may be missing
        self.options, self.requests = options, options.requests()

    def identity(self) -> dict[str, Any]:
        return self.options.identity(self.requests)

    def setup(self, stage: str) -> None:
        """Which images are missing; a barrier follows, so all ranks see the same."""
        ready = done(Path(self.trainer.default_root_dir))
        self.missing = [request for request in self.requests if request[:2] not in ready]

    def predict_dataloader(self) -> DataLoader:
        """This rank's share. Lightning's own sharding fails where a rank gets nothing."""
        share = self.missing[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(share, batch_size=self.options.batch_size, collate_fn=list)


class Generate(pl.LightningModule):
    """Denoise prompts into images; the trainer's mitigation callbacks decide the guidance."""

    def __init__(self, model: ModelOptions, guard: Guard | None = None):
        super().__init__()
        model.check()
        self.model, self.guard = model, guard

    def load(self) -> None:
        """Load the pipeline, once: a comparison predicts with one module again and again."""
        if not hasattr(self, "pipe"):
            self.pipe = self.model.load(torch.device("cpu"))

    def check(self, rules: Sequence[GuidanceRule], requests: Sequence[Request]) -> None:
        """ValueError where a rule, the scheduler or the resolution cannot work."""
        self.model.resolution_of(self.pipe)
        self.model.prepare(self.pipe, self.model.guidance_scale, *rules)
        for rule in rules:
            rule.check_requests(self.pipe, requests)

    def prepare_data(self) -> None:
        """Download a model of the Hub in one process of each machine."""
        self.load()

    def setup(self, stage: str) -> None:
        self.load()
        for rules in [self.rules, *([self.guard.stronger] if self.guard else [])]:
            self.check(rules, self.trainer.datamodule.requests)  # fails before the bar

    @property
    def rules(self) -> list[GuidanceRule]:
        """The mitigations among the trainer's callbacks."""
        return [callback for callback in self.trainer.callbacks if isinstance(callback, GuidanceRule)]

    def on_predict_start(self) -> None:
        """Move the model to the device, warm it up and name prompts that it cannot read whole."""
        self.pipe.to(self.device)
        data = self.trainer.datamodule
        if data.missing:
            self.warm_up(min(data.options.batch_size, len(data.missing)))
        negative = self.model.negative_prompt
        each = [(r.prompt, r.negative_prompt or negative, r.alternative_prompt) for r in data.requests]
        texts = list(dict.fromkeys(filter(None, chain(*each, *(rule.texts for rule in self.rules)))))
        if (long := too_long(self.pipe, texts)) and self.global_rank == 0:
            log.warning(
                "%d of %d prompts are longer than the %d tokens that the model reads: their ends are ignored "
                "(the first: %r)", len(long), len(texts), self.pipe.tokenizer.model_max_length,
                shorten(long[0], 80, placeholder="..."),
            )  # fmt: skip

    def warm_up(self, batch_size: int) -> None:
        """Call the UNet once: the choice of kernels must not count in the first batch's `seconds`."""
        unet, encoder = self.pipe.unet, self.pipe.text_encoder.config
        size = self.model.resolution_of(self.pipe) // self.pipe.vae_scale_factor
        options = {"device": self.device, "dtype": unet.dtype}
        latents = torch.zeros(2 * batch_size, unet.config.in_channels, size, size, **options)
        tokens = torch.zeros(2 * batch_size, encoder.max_position_embeddings, encoder.hidden_size, **options)
        unet(latents, torch.tensor(1, device=self.device), tokens, return_dict=False)

    def predict_step(self, batch: list[Request], batch_index: int) -> Generated:
        return self.generate([Request(*request) for request in batch], self.rules)

    def generate(self, requests: list[Request], rules: Sequence[GuidanceRule] = ()) -> Generated:
        """Images of the requests, under the rules; the guard may make some again."""
        model, guarded = self.model, None
        reset_peak(self.device)
        started = time.perf_counter()
        quiet = True if self.global_rank else None  # None: no bar where the output is not a terminal
        with tqdm(desc="denoise", total=0, position=1, leave=False, disable=quiet) as bar:

            def make(requests: list[Request], rules: Sequence[GuidanceRule]) -> tuple[list[Image], Denoised]:
                return make_images(
                    self.pipe, self.device, requests, model.resolution_of(self.pipe), model.guidance_scale,
                    model.num_inference_steps, model.negative_prompt, rules, bar,
                )  # fmt: skip

            images, denoised = make(requests, rules)
            watched = next((rule.watched_space for rule in rules if rule.watched_space), None)
            alternatives = next((r.alternatives for r in rules if r.alternatives), [None] * len(requests))
            if self.guard:
                again = partial(make, rules=self.guard.stronger or rules)
                guarded, denoised = self.guard.watch_requests(requests, images, denoised, again)
                images = guarded.images
        seconds = (time.perf_counter() - started) / len(requests)
        peak = peak_gib(self.device)
        return Generated(requests, images, denoised, seconds, peak, watched, alternatives, guarded)
