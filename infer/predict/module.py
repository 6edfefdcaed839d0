"""The Lightning module and data module of `python -m infer predict`."""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from PIL.Image import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.prompts import inline_prompts, load_prompts
from infer.denoising.hooks import GuidanceRule, Request
from infer.denoising.loop import Denoised
from infer.denoising.noise import sample_seed
from infer.denoising.sampling import make_images
from infer.models.memory import peak_gib, reset_peak
from infer.models.pipeline import too_long
from infer.options import ModelOptions
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


class PromptData(pl.LightningDataModule):
    """Which images to make: `samples_per_prompt` of each prompt, but for those in the run folder already.

    The arguments are those of `infer.options.PromptOptions` and `DenoiseOptions`.
    """

    def __init__(
        self,
        prompts: str | None = None,
        prompt: list[str] | None = None,
        samples_per_prompt: int = 1,
        seed: int = 0,
        limit: int | None = None,
        batch_size: int = 16,
    ):
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # few may be missing
        if prompts is None and prompt is None:
            raise ValueError("give prompts: --prompts FILE, --prompt TEXT, or --run FOLDER")
        self.prompts, self.samples_per_prompt, self.seed = prompts, samples_per_prompt, seed
        self.limit, self.batch_size = limit, batch_size
        self.requests = [
            Request(p.id, sample, p.text, sample_seed(seed, p.id, sample), p.negative, p.alternative)
            for p in (load_prompts(prompts) if prompt is None else inline_prompts(prompt))[:limit]
            for sample in range(samples_per_prompt)
        ]

    @property
    def fingerprint(self) -> str:
        """Of the prompts' ids and texts: the file may have changed under its name."""
        asked = [(r.prompt_id, r.prompt, r.negative_prompt, r.alternative_prompt) for r in self.requests]
        return hashlib.sha256(repr(asked).encode()).hexdigest()[:12]

    def identity(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "prompts_sha256": self.fingerprint,
            "images": len(self.requests),
            "samples_per_prompt": self.samples_per_prompt,
            "seed": self.seed,
            "limit": self.limit,
        }

    def setup(self, stage: str) -> None:
        """Which images are missing; a barrier follows, so all ranks see the same."""
        ready = done(Path(self.trainer.default_root_dir))
        self.missing = [request for request in self.requests if request[:2] not in ready]

    def predict_dataloader(self) -> DataLoader:
        """This rank's share. Lightning's own sharding fails where a rank gets nothing."""
        share = self.missing[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(share, batch_size=self.batch_size, collate_fn=list)


class Generate(pl.LightningModule):
    """Denoise prompts into images; the trainer's mitigation callbacks decide the guidance."""

    def __init__(self, model: ModelOptions):
        super().__init__()
        model.check()
        self.model = model

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

    def setup(self, stage: str) -> None:
        self.load()
        self.check(self.rules, self.trainer.datamodule.requests)  # fails before the bar

    @property
    def rules(self) -> list[GuidanceRule]:
        """The mitigations among the trainer's callbacks."""
        return [callback for callback in self.trainer.callbacks if isinstance(callback, GuidanceRule)]

    def on_predict_start(self) -> None:
        self.pipe.to(self.device)
        asked = self.trainer.datamodule.requests
        others = [text for rule in self.rules for text in rule.texts]
        texts = [r.prompt for r in asked] + [r.negative_prompt or self.model.negative_prompt for r in asked]
        texts = list(filter(None, dict.fromkeys(texts + [r.alternative_prompt for r in asked] + others)))
        long = too_long(self.pipe, texts)
        if long and self.global_rank == 0:
            log.warning(
                "%d of %d prompts are longer than the %d tokens that the model reads: their ends are ignored "
                "(the first: %r)", len(long), len(texts), self.pipe.tokenizer.model_max_length, long[0],
            )  # fmt: skip

    def predict_step(self, batch: list[Request], batch_index: int) -> Generated:
        return self.generate([Request(*request) for request in batch], self.rules)

    def generate(self, requests: list[Request], rules: Sequence[GuidanceRule] = ()) -> Generated:
        """Images of the requests, under the rules."""
        model = self.model
        reset_peak(self.device)
        started = time.perf_counter()
        quiet = True if self.global_rank else None  # None: no bar where the output is not a terminal
        with tqdm(desc="denoise", total=0, position=1, leave=False, disable=quiet) as bar:
            images, denoised = make_images(
                self.pipe, self.device, requests, model.resolution_of(self.pipe), model.guidance_scale,
                model.num_inference_steps, model.negative_prompt, rules, bar,
            )  # fmt: skip
        seconds = (time.perf_counter() - started) / len(requests)
        watched = next((rule.watched_space for rule in rules if rule.watched_space), None)
        nowhere: list[str | None] = [None] * len(requests)
        alternatives = next((rule.alternatives for rule in rules if rule.alternatives), nowhere)
        return Generated(requests, images, denoised, seconds, peak_gib(self.device), watched, alternatives)
