"""The Lightning module and data module of `python -m infer predict`."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from PIL.Image import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.pipeline import check_pipeline, fingerprint, load_pipeline
from data.prompts import load_prompts
from infer.denoise import Denoised, GuidanceRule, prepare
from infer.images import make_images
from infer.runfolder import done
from infer.seeds import sample_seed


class Request(NamedTuple):
    """One image to make."""

    prompt_id: str
    sample: int
    prompt: str
    seed: int


@dataclass
class Generated:
    """A batch of finished images and what happened on the way."""

    requests: list[Request]
    images: list[Image]
    denoised: Denoised
    seconds_per_image: float


class PromptData(pl.LightningDataModule):
    """Which images to make: `samples_per_prompt` of each prompt, but for those in the run folder already.

    Args:
        prompts: a .txt or .jsonl file, or a training run folder (captions that it duplicated, if it did).
        samples_per_prompt: images per prompt.
        seed: base seed; the noise of an image depends on it, the prompt's id and the sample number only.
        limit: take only the first prompts.
        batch_size: images per UNet call and device.
    """

    def __init__(
        self,
        prompts: str,
        samples_per_prompt: int = 1,
        seed: int = 0,
        limit: int | None = None,
        batch_size: int = 16,
    ):
        super().__init__()
        if samples_per_prompt < 1 or batch_size < 1:
            raise ValueError("samples_per_prompt and batch_size must be at least 1")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self.prompts, self.samples_per_prompt, self.seed = prompts, samples_per_prompt, seed
        self.limit, self.batch_size = limit, batch_size
        self.requests = [
            Request(prompt.id, sample, prompt.text, sample_seed(seed, prompt.id, sample))
            for prompt in load_prompts(prompts)[:limit]
            for sample in range(samples_per_prompt)
        ]

    @property
    def fingerprint(self) -> str:
        """Of the prompts' ids and texts: the file may have changed under its name."""
        asked = [(request.prompt_id, request.prompt) for request in self.requests]
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

    def predict_dataloader(self) -> DataLoader:
        ready = done(Path(self.trainer.default_root_dir))
        missing = [request for request in self.requests if request[:2] not in ready]
        return DataLoader(missing, batch_size=self.batch_size, collate_fn=list)


class Generate(pl.LightningModule):
    """Denoise prompts into images; the trainer's mitigation callbacks decide the guidance.

    Args:
        pipeline: diffusers StableDiffusionPipeline folder or Hub id.
        revision: of the Hub repository.
        scheduler: the pipeline's own, or another built from its config.
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
        scheduler: Literal["own", "ddim", "dpm"] = "own",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        resolution: int | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ):
        super().__init__()
        check_pipeline(pipeline)
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}")
        self.source, self.revision, self.scheduler = pipeline, revision, scheduler
        self.num_inference_steps, self.scale = num_inference_steps, guidance_scale
        self.negative_prompt, self.resolution, self.weights = negative_prompt, resolution, dtype

    def identity(self) -> dict[str, Any]:
        return {
            "pipeline": self.source,
            "pipeline_sha256": fingerprint(self.source),
            "revision": self.revision,
            "scheduler": self.scheduler,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.scale,
            "negative_prompt": self.negative_prompt,
            "resolution": self.resolution,
            "dtype": self.weights,
        }

    def setup(self, stage: str) -> None:
        if not hasattr(self, "pipe"):  # a comparison predicts with one module again and again
            dtype = getattr(torch, self.weights)
            self.pipe = load_pipeline(self.source, self.revision, self.scheduler, dtype)
        prepare(self.pipe.scheduler, self.scale, self.num_inference_steps, self.rules)  # fails before the bar

    @property
    def rules(self) -> list[GuidanceRule]:
        """The mitigations among the trainer's callbacks."""
        return [callback for callback in self.trainer.callbacks if isinstance(callback, GuidanceRule)]

    @property
    def side_pixels(self) -> int:
        return self.resolution or self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    def on_predict_start(self) -> None:
        self.pipe.to(self.device)

    def predict_step(self, batch: list[Request], batch_index: int) -> Generated:
        return self.generate([Request(*request) for request in batch], self.rules)

    def generate(self, requests: list[Request], rules: Sequence[GuidanceRule] = ()) -> Generated:
        """Images of the requests, under the rules."""
        started = time.perf_counter()
        quiet = True if self.global_rank else None  # None: no bar where the output is not a terminal
        steps = self.num_inference_steps
        with tqdm(desc="denoise", total=steps, position=1, leave=False, disable=quiet) as bar:
            images, denoised = make_images(
                self.pipe,
                self.device,
                [request.prompt for request in requests],
                [request.seed for request in requests],
                self.side_pixels,
                self.scale,
                steps,
                self.negative_prompt,
                rules,
                bar.update,
            )
        return Generated(requests, images, denoised, (time.perf_counter() - started) / len(requests))
