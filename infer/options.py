"""What the commands of `python -m infer` share: run folders, prompts, the model and how it denoises."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from tqdm import tqdm

from data.batches import in_batches
from data.files import read_object
from data.ranges import FiniteFloat
from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised, prepare
from infer.denoising.requests import Request
from infer.denoising.sampling import denoise_requests, resolution_of
from infer.denoising.schedulers import Scheduler, make_scheduler
from infer.models.lora import check_lora
from infer.models.pipeline import check_pipeline, fingerprint, load_pipeline, resolved_revision


@dataclass(kw_only=True)
class ModelOptions:
    """The model, and how it denoises.

    Args:
        pipeline: diffusers StableDiffusionPipeline folder, Hub id or single-file .safetensors checkpoint;
            null: that of `run`.
        revision: commit, tag or branch of the pipeline on the Hub.
        single_file_config: for a single file: diffusers folder or Hub id with its architecture's configs and
            tokenizer.
        lora: LoRA weights on top: .safetensors file, folder or Hub id.
        lora_scale: factor of the LoRA.
        scheduler: the pipeline's own, or another kind built from its config.
        timestep_spacing: null: the scheduler's own.
        num_inference_steps: denoising steps.
        guidance_scale: of classifier-free guidance; 0 unconditional, 1 conditional, negative opposite.
        negative_prompt: instead of the empty prompt, for prompts without a negative prompt of their own.
        resolution: width and height in pixels; null: the UNet's own.
        dtype: of the weights.
    """

    pipeline: str | None = None
    revision: str | None = None
    single_file_config: str | None = None
    lora: str | None = None
    lora_scale: FiniteFloat = 1.0
    scheduler: Scheduler = "own"
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    num_inference_steps: PositiveInt = 50
    guidance_scale: FiniteFloat = 7.5
    negative_prompt: str = ""
    resolution: PositiveInt | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def check(self) -> None:
        """Raise FileNotFoundError or ValueError for a model or LoRA that cannot be loaded."""
        check_pipeline(self.pipeline, self.single_file_config)
        check_lora(self.lora, self.lora_scale)

    def identity(self) -> dict[str, Any]:
        """The options, fingerprints of the files that they name, and the commit of a pipeline on the Hub."""
        named = {name: getattr(self, name) for name in ("pipeline", "single_file_config", "lora")}
        prints = {f"{name}_sha256": path and fingerprint(path) for name, path in named.items()}
        return asdict(self) | prints | {"commit": resolved_revision(self.pipeline, self.revision)}

    def words(self) -> list[str]:
        """The options that are not the defaults, as a command takes them."""
        changed = [option.name for option in fields(self) if getattr(self, option.name) != option.default]
        return [word for name in changed for word in (f"--model.{name}", str(getattr(self, name)))]

    def load(self, device: torch.device) -> Any:
        """The pipeline on the device, with the scheduler."""
        pipe = load_pipeline(
            self.pipeline, self.revision, getattr(torch, self.dtype), self.lora, self.lora_scale,
            self.single_file_config,
        )  # fmt: skip
        pipe.scheduler = make_scheduler(pipe.scheduler, self.scheduler, self.timestep_spacing)
        return pipe.to(device)

    def resolution_of(self, pipe: Any) -> int:
        """Width and height of the images in pixels."""
        return resolution_of(pipe, self.resolution)

    def prepare(self, pipe: Any, guidance_scale: float, *rules: GuidanceRule) -> list[float]:
        """The schedule's timesteps; ValueError for a rule that cannot take effect."""
        return prepare(pipe.scheduler, guidance_scale, self.num_inference_steps, rules)


@dataclass(kw_only=True)
class RunOptions:
    """Run folders.

    Args:
        out: folder for the results, such as outputs/stp.
        run: training run folder; gives the pipeline, and prompts and training images that are not set.
    """

    out: str
    run: str | None = None


@dataclass(kw_only=True)
class PromptOptions(RunOptions):
    """Which prompts, and how many images of each.

    Args:
        prompts: prompt file (.txt, .jsonl, .csv, .tsv), training run folder (captions that it duplicated, if
            it did), or shards or a folder of captioned images.
        prompt: the prompts themselves, instead of a file. On the command line --prompt TEXT, taken to the
            letter, as often as you like.
        samples_per_prompt: images of each prompt.
    """

    prompts: str | None = None
    prompt: list[str] | None = None
    samples_per_prompt: PositiveInt = 1


@dataclass(kw_only=True)
class DenoiseOptions(RunOptions):
    """The model, and which images it makes in which batches.

    Args:
        seed: base seed; the noise of an image depends on it, the prompt's id and the sample number only.
        limit: take at most this many prompts.
        batch_size: images per UNet call and device.
        model: which model, and how it denoises.
    """

    seed: int = 0
    limit: PositiveInt | None = None
    batch_size: PositiveInt = 16
    model: ModelOptions = field(default_factory=ModelOptions)

    def __post_init__(self) -> None:
        if not self.model.pipeline:
            if not self.run:
                raise ValueError("give --model.pipeline, or --run with a training run folder")
            self.model = replace(self.model, pipeline=f"{self.run}/pipeline")
        self.model.check()

    def denoised_batches(
        self, pipe: Any, requests: Sequence[Request], guidance_scale: float, rules: Sequence[GuidanceRule],
        title: str,
    ) -> Iterator[tuple[list[Request], Denoised]]:  # fmt: skip
        """Batches of the requests and their latents, without images; one progress bar over all steps."""
        model, steps = self.model, len(self.model.prepare(pipe, guidance_scale))
        resolution = model.resolution_of(pipe)
        with tqdm(desc=title, total=-(-len(requests) // self.batch_size) * steps, unit="step") as bar:
            for batch in in_batches(requests, self.batch_size):
                bar.total -= steps  # the loop adds its own steps
                denoised = denoise_requests(
                    pipe, pipe.device, batch, resolution, guidance_scale, model.num_inference_steps,
                    model.negative_prompt, rules, bar,
                )  # fmt: skip
                yield batch, denoised


@dataclass(kw_only=True)
class TrainerOptions:
    """Lightning's trainer.

    Args:
        accelerator: cpu, gpu, auto ...
        devices: how many, or which.
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"


def provenance_of(run: str | Path) -> dict[str, Any]:
    """The `provenance.json` of a training run; FileNotFoundError when it has none that can be read."""
    provenance = read_object(Path(run) / "provenance.json")
    if not provenance:
        raise FileNotFoundError(f"'{run}' is no training run: it has no provenance.json that can be read")
    return provenance


def need(options: Any, *names: str) -> None:
    """ValueError for an option that neither is set nor comes from `run`."""
    for name in names:
        if not getattr(options, name):
            raise ValueError(f"give --{name}, or --run with a training run folder")


def device_of(name: str | None) -> torch.device:
    """The device of that name, or a GPU where there is one; ValueError when it is not here."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {name!r} is not here: {str(error).splitlines()[0]}") from error
    return torch.device(name)
