"""The Lightning module of `python -m infer predict`: requests -> images."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from PIL.Image import Image
from tqdm import tqdm

from data.batches import in_batches
from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised, concatenated
from infer.denoising.requests import Request, Requests
from infer.denoising.sampling import make_images
from infer.index.guard import Guard, Guarded
from infer.models.memory import is_out_of_memory, peak_gib, reset_peak
from infer.models.pipeline import too_long
from infer.options import ModelOptions

log = logging.getLogger(__name__)
CHUNK = 4096  # prompts that are tokenized at a time


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


class Generate(pl.LightningModule):
    """Denoise prompts into images; the trainer's mitigation callbacks decide the guidance."""

    def __init__(self, model: ModelOptions, guard: Guard | None = None):
        super().__init__()
        model.check()
        self.model, self.guard = model, guard
        self.rows_at_once: int | None = None  # fewer than in a batch where the memory is too small

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
        if len(data.missing):
            self.warm_up(min(data.options.batch_size, len(data.missing)))
        if self.global_rank == 0:
            self.name_long_prompts(data.requests)

    def name_long_prompts(self, requests: Requests) -> None:
        """Warn of prompts that the model cannot read whole."""
        long: dict[int, str] = {}  # by hashes, for there may be many
        for chunk in in_batches(self.texts(requests), CHUNK):
            for text in too_long(self.pipe, [*dict.fromkeys(chunk)]):
                long.setdefault(hash(text), text if not long else "")
        if long:
            texts = np.unique(np.fromiter(map(hash, self.texts(requests)), np.int64))
            log.warning(
                "%d of %d prompts are longer than the %d tokens that the model reads: their ends are ignored "
                "(the first: %r)", len(long), len(texts), self.pipe.tokenizer.model_max_length,
                shorten(next(iter(long.values())), 80, placeholder="..."),
            )  # fmt: skip

    def texts(self, requests: Requests) -> Iterator[str]:
        """All texts that the model is shown: prompts, negative and alternative ones, those of the rules."""
        for prompt in requests.prompts:
            texts = prompt.text, prompt.negative or self.model.negative_prompt, prompt.alternative
            yield from filter(None, texts)
        for rule in self.rules:
            yield from filter(None, rule.texts)

    def within_memory(self, run: Callable[[int], Any], rows: int) -> Any:
        """`run(number of rows)`, with half as many, and so on, where the memory does not suffice.

        What fits is kept for the batches that follow. ValueError where one row does not fit.
        """
        while True:
            at_once = min(rows, self.rows_at_once or rows)
            try:
                return run(at_once)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if at_once == 1:
                    raise ValueError(
                        f"a single image does not fit into the memory of {self.device}: "
                        "try --model.dtype float16 or a smaller --model.resolution"
                    ) from error
            self.rows_at_once = at_once // 2  # here, where the error holds no tensors any more
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            log.warning(
                "%d images at a time do not fit into the memory of %s: going on with %d, for the same images",
                at_once, self.device, self.rows_at_once,
            )  # fmt: skip

    def warm_up(self, batch_size: int) -> None:
        """Call the UNet once: the choice of kernels must not count in the first batch's `seconds`."""
        self.within_memory(self.call_unet, batch_size)

    def call_unet(self, batch_size: int) -> None:
        """Both predictions of a batch of zeros."""
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
        guarded = None
        reset_peak(self.device)
        started = time.perf_counter()
        quiet = True if self.global_rank else None  # None: no bar where the output is not a terminal
        with tqdm(desc="denoise", total=0, position=1, leave=False, disable=quiet) as bar:
            images, denoised, alternatives = self.make(requests, rules, bar)
            watched = next((rule.watched_space for rule in rules if rule.watched_space), None)
            if self.guard:
                stronger = self.guard.stronger or rules
                guarded, denoised = self.guard.watch_requests(
                    requests, images, denoised, lambda again: self.make(again, stronger, bar)[:2]
                )
                images = guarded.images
        seconds = (time.perf_counter() - started) / len(requests)
        peak = peak_gib(self.device)
        return Generated(requests, images, denoised, seconds, peak, watched, alternatives, guarded)

    def make(
        self, requests: list[Request], rules: Sequence[GuidanceRule], bar: tqdm
    ) -> tuple[list[Image], Denoised, list[str | None]]:
        """Images, what happened, and the rules' alternative prompts; as many at once as the memory holds.

        No image depends on those that are made with it: each has its own seed, and rules decide per sample.
        """
        model, images, runs, alternatives = self.model, [], [], []

        def run(rows: int) -> tuple[list[Image], Denoised]:
            bar.total = bar.n  # the loop adds its steps; those of a run that did not fit are done with
            return make_images(
                self.pipe, self.device, requests[len(images) :][:rows], model.resolution_of(self.pipe),
                model.guidance_scale, model.num_inference_steps, model.negative_prompt, rules, bar,
            )  # fmt: skip

        while len(images) < len(requests):
            made, denoised = self.within_memory(run, len(requests) - len(images))
            runs.append(denoised)
            alternatives += next((r.alternatives for r in rules if r.alternatives), [None] * len(made))
            images += made
        return images, concatenated(runs), alternatives
