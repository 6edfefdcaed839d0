"""What the commands that load one model by themselves share: which model, and how it denoises."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import prepare
from infer.denoising.sampling import resolution_of
from infer.denoising.schedulers import Scheduler, make_scheduler
from infer.models.lora import check_lora
from infer.models.pipeline import check_pipeline, load_pipeline


@dataclass(kw_only=True)
class ModelOptions:
    """A model and its schedule.

    Args:
        run: training run folder; gives the pipeline and whatever else is not set.
        pipeline: model under test: diffusers folder, Hub id or single-file .safetensors checkpoint.
        single_file_config: for a single file: diffusers folder or Hub id with its architecture's configs and
            tokenizer.
        lora: LoRA weights on top of the model under test: .safetensors file, folder or Hub id.
        lora_scale: of the LoRA.
        scheduler: the pipeline's own, or another kind built from its config.
        timestep_spacing: in place of the scheduler's own.
        num_inference_steps: denoising steps.
        resolution: side in pixels; null: the UNet's own.
        dtype: of the weights.
        batch_size: images per UNet call and device.
        seed: base seed; the noise of an image depends on it, the prompt's id and the sample number only.
        limit: only so many of the prompts.
    """

    run: str | None = None
    pipeline: str | None = None
    single_file_config: str | None = None
    lora: str | None = None
    lora_scale: float = 1.0
    scheduler: Scheduler = "own"
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    num_inference_steps: int = 50
    resolution: int | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: int = 16
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        self.pipeline = self.pipeline or (f"{self.run}/pipeline" if self.run else None)
        need(self, "pipeline")
        at_least_1(self, "num_inference_steps", "batch_size", "limit")
        check_pipeline(self.pipeline, self.single_file_config)
        check_lora(self.lora, self.lora_scale)

    def load(self, device: torch.device) -> tuple[Any, int]:
        """The pipeline on the device, with the scheduler; the side of its images in pixels."""
        pipe = load_pipeline(
            self.pipeline, None, getattr(torch, self.dtype), self.lora, self.lora_scale,
            self.single_file_config,
        )  # fmt: skip
        pipe.scheduler = make_scheduler(pipe.scheduler, self.scheduler, self.timestep_spacing)
        return pipe.to(device), resolution_of(pipe, self.resolution)

    def prepare(self, pipe: Any, scale: float, *rules: GuidanceRule) -> list[float]:
        """The schedule's timesteps; ValueError for a rule that cannot take effect."""
        return prepare(pipe.scheduler, scale, self.num_inference_steps, rules)


def provenance_of(run: str) -> dict[str, Any]:
    """What a training run says of itself; FileNotFoundError when it is none."""
    about = Path(run) / "provenance.json"
    if not about.exists():
        raise FileNotFoundError(f"{run!r} is no training run: it has no provenance.json")
    return json.loads(about.read_text())


def need(options: Any, *names: str) -> None:
    for name in names:
        if not getattr(options, name):
            raise ValueError(f"give --{name}, or --run with a training run folder")


def at_least_1(options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def device_of(name: str | None) -> torch.device:
    """The device of that name, or a GPU where there is one; ValueError when it is not here."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {name!r} is not here: {str(error).splitlines()[0]}") from error
    return torch.device(name)
