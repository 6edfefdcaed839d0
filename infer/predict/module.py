"""The Lightning module and data module of `python -m infer predict`."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from PIL.Image import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.files import digest
from data.prompts import inline_prompts, load_prompts
from infer.denoising.hooks import GuidanceRule, Request
from infer.denoising.loop import Denoised, prepare
from infer.denoising.noise import sample_seed
from infer.denoising.sampling import make_images, side_of
from infer.denoising.schedulers import Scheduler, make_scheduler
from infer.models.lora import check_lora
from infer.models.memory import peak_gib, reset_peak
from infer.models.pipeline import check_pipeline, fingerprint, load_pipeline, too_long
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

    Args:
        prompts: a .txt, .jsonl or .csv file; a training run folder (captions that it duplicated, if it did);
            or shards or a folder of captioned images.
        prompt: prompts themselves, in place of a file.
        samples_per_prompt: images per prompt.
        seed: base seed; the noise of an image depends on it, the prompt's id and the sample number only.
        limit: take only the first prompts.
        batch_size: images per UNet call and device.
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
        if samples_per_prompt < 1 or batch_size < 1:
            raise ValueError("samples_per_prompt and batch_size must be at least 1")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        if (prompts is None) == (prompt is None):
            raise ValueError("give either a file of prompts (--data.prompts FILE) or prompts (--prompt TEXT)")
        self.prompts, self.samples_per_prompt, self.seed = prompts, samples_per_prompt, seed
        self.limit, self.batch_size = limit, batch_size
        self.requests = [
            Request(p.id, sample, p.text, sample_seed(seed, p.id, sample), p.negative, p.alternative)
            for p in (inline_prompts(prompt) if prompts is None else load_prompts(prompts))[:limit]
            for sample in range(samples_per_prompt)
        ]

    @property
    def fingerprint(self) -> str:
        """Of the prompts' ids and texts: the file may have changed under its name."""
        asked = [(r.prompt_id, r.prompt, r.negative_prompt, r.alternative_prompt) for r in self.requests]
        return digest(asked)[:12]

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
    """Denoise prompts into images; the trainer's mitigation callbacks decide the guidance.

    Args:
        pipeline: diffusers StableDiffusionPipeline folder, Hub id, or single-file .safetensors checkpoint.
        revision: of the Hub repository.
        single_file_config: for a single file: diffusers folder or Hub id with its architecture's configs and
            tokenizer.
        lora: LoRA weights on top: .safetensors file, folder or Hub id.
        lora_scale: of the LoRA.
        scheduler: the pipeline's own, or another kind built from its config.
        timestep_spacing: in place of the scheduler's own.
        num_inference_steps: denoising steps.
        guidance_scale: of classifier-free guidance; 0 unconditional, 1 conditional, negative opposite.
        negative_prompt: in place of the empty prompt.
        resolution: side in pixels; null: the UNet's own.
        dtype: of the weights.
    """

    def __init__(
        self,
        pipeline: str,
        revision: str | None = None,
        single_file_config: str | None = None,
        lora: str | None = None,
        lora_scale: float = 1.0,
        scheduler: Scheduler = "own",
        timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        resolution: int | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ):
        super().__init__()
        check_pipeline(pipeline, single_file_config)
        check_lora(lora, lora_scale)
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale must be a number, not {guidance_scale}")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}")
        self.source, self.revision, self.single_file_config = pipeline, revision, single_file_config
        self.lora, self.lora_scale = lora, lora_scale
        self.scheduler, self.timestep_spacing = scheduler, timestep_spacing
        self.num_inference_steps, self.scale = num_inference_steps, guidance_scale
        self.negative_prompt, self.resolution, self.weights = negative_prompt, resolution, dtype

    def identity(self) -> dict[str, Any]:
        return {
            "pipeline": self.source,
            "pipeline_sha256": fingerprint(self.source),
            "revision": self.revision,
            "single_file_config": self.single_file_config,
            "single_file_config_sha256": self.single_file_config and fingerprint(self.single_file_config),
            "lora": self.lora,
            "lora_sha256": self.lora and fingerprint(self.lora),
            "lora_scale": self.lora_scale,
            "scheduler": self.scheduler,
            "timestep_spacing": self.timestep_spacing,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.scale,
            "negative_prompt": self.negative_prompt,
            "resolution": self.resolution,
            "dtype": self.weights,
        }

    def load(self) -> None:
        """Load the pipeline, once: a comparison predicts with one module again and again."""
        if not hasattr(self, "pipe"):
            dtype = getattr(torch, self.weights)
            self.pipe = load_pipeline(
                self.source, self.revision, dtype, self.lora, self.lora_scale, self.single_file_config
            )
            self.pipe.scheduler = make_scheduler(self.pipe.scheduler, self.scheduler, self.timestep_spacing)

    def check(self, rules: Sequence[GuidanceRule], requests: Sequence[Request]) -> None:
        """ValueError where a rule, the scheduler or the resolution cannot work."""
        side_of(self.pipe, self.resolution)
        prepare(self.pipe.scheduler, self.scale, self.num_inference_steps, rules)
        for rule in rules:
            rule.check_requests(self.pipe, requests)

    def setup(self, stage: str) -> None:
        self.load()
        self.check(self.rules, self.trainer.datamodule.requests)  # fails before the bar

    @property
    def rules(self) -> list[GuidanceRule]:
        """The mitigations among the trainer's callbacks."""
        return [callback for callback in self.trainer.callbacks if isinstance(callback, GuidanceRule)]

    @property
    def side_pixels(self) -> int:
        return side_of(self.pipe, self.resolution)

    def on_predict_start(self) -> None:
        self.pipe.to(self.device)
        asked = self.trainer.datamodule.requests
        others = [text for rule in self.rules for text in rule.texts]
        texts = [r.prompt for r in asked] + [r.negative_prompt or self.negative_prompt for r in asked]
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
        reset_peak(self.device)
        started = time.perf_counter()
        quiet = True if self.global_rank else None  # None: no bar where the output is not a terminal
        with tqdm(desc="denoise", total=0, position=1, leave=False, disable=quiet) as bar:
            images, denoised = make_images(
                self.pipe, self.device, requests, self.side_pixels, self.scale, self.num_inference_steps,
                self.negative_prompt, rules, bar,
            )  # fmt: skip
        seconds = (time.perf_counter() - started) / len(requests)
        watched = next((rule.watched_space for rule in rules if rule.watched_space), None)
        nowhere: list[str | None] = [None] * len(requests)
        alternatives = next((rule.alternatives for rule in rules if rule.alternatives), nowhere)
        return Generated(requests, images, denoised, seconds, peak_gib(self.device), watched, alternatives)
