"""Find a gate: the first-step magnitude above which a prompt counts as memorized."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.pipeline import check_pipeline, load_pipeline
from data.prompts import Prompt, load_prompts
from infer.denoise import prepare
from infer.guidance import Guidance, Rows
from infer.images import embed
from infer.neighbours import same
from infer.rules import DenoisingStep, Request
from infer.schedulers import Scheduler, make_scheduler, noise_levels
from infer.seeds import initial_noise, sample_seed


@torch.no_grad()
def first_differences(
    pipe: Any,
    requests: Sequence[Request],
    resolution: int,
    num_inference_steps: int,
    device: torch.device,
    batch_size: int = 16,
) -> Tensor:
    """RMS(eps_c - eps_u) of each request at the first step of the schedule, (N,): two evaluations each."""
    prepare(pipe.scheduler, 0.0, num_inference_steps)
    t, side = pipe.scheduler.timesteps[0], resolution // pipe.vae_scale_factor
    found = []
    for start in tqdm(range(0, len(requests), batch_size), "first steps"):
        batch = requests[start : start + batch_size]
        embeddings = (
            embed(pipe, [request.negative_prompt or "" for request in batch], device),
            embed(pipe, [request.prompt for request in batch], device),
        )
        shape = (pipe.unet.config.in_channels, side, side)
        noise, _ = initial_noise([request.seed for request in batch], shape, embeddings[0].dtype)
        latents = pipe.scheduler.scale_model_input(noise.to(device) * pipe.scheduler.init_noise_sigma, t)
        step = DenoisingStep(
            0, t.item(), pipe.scheduler.timesteps.tolist(), latents, *noise_levels(pipe.scheduler)[0],
            pipe.scheduler.config.prediction_type, -1.0,
        )  # fmt: skip

        def predict(rows: Rows, latents: Tensor = latents, embeddings: tuple = embeddings) -> Tensor:
            inputs = latents[rows.index]
            return pipe.unet(inputs, t, encoder_hidden_states=rows.pick(*embeddings), return_dict=False)[0]

        Guidance((), len(batch), device)(step, predict)
        found.append(step.difference_rms.cpu())
        pipe.scheduler.set_timesteps(num_inference_steps)  # forget where it was
    return torch.cat(found)


def gate_threshold(ordinary: Tensor, false_positive_rate: float) -> float:
    """The magnitude that a share `false_positive_rate` of the ordinary prompts' first differences reaches.

    ValueError for a rate outside (0, 1), or one that so few prompts cannot show: fewer than 1 / rate.
    """
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate must be in (0, 1), not {false_positive_rate}")
    if len(ordinary) * false_positive_rate < 1:
        raise ValueError(
            f"{len(ordinary)} ordinary images cannot show a false-positive rate of {false_positive_rate}: "
            f"at least {math.ceil(1 / false_positive_rate)} are needed"
        )
    allowed = math.floor(len(ordinary) * false_positive_rate + 1e-9)
    return ordinary.double().sort().values[len(ordinary) - allowed].item()


@dataclass
class Calibration:
    """What to calibrate, and on what.

    Args:
        out: the preset to write, a YAML file that --mitigation takes.
        mitigation: the preset to put the gate into: a name in configs/mitigation, or a path.
        ordinary: prompts that are not memorized (what --data.prompts takes); memorized ones are left out.
        false_positive_rate: share of the ordinary images that may pass for memorized.
        run: training run folder; gives pipeline and memorized where these are not set.
        pipeline: model: diffusers folder, Hub id or single file.
        memorized: prompts that are, to say how many of them the gate catches.
        samples_per_prompt: noises per prompt.
        seed: base seed.
        limit: only the first prompts of each kind.
        scheduler: the pipeline's own, or another kind built from its config.
        num_inference_steps: the first timestep depends on it: as in the predictions that will use the gate.
        resolution: side in pixels; null: the UNet's own.
        batch_size: images per UNet call.
        device: where to compute.
    """

    out: str
    mitigation: str
    ordinary: str
    false_positive_rate: float = 0.05
    run: str | None = None
    pipeline: str | None = None
    memorized: str | None = None
    samples_per_prompt: int = 1
    seed: int = 0
    limit: int | None = None
    scheduler: Scheduler = "own"
    num_inference_steps: int = 50
    resolution: int | None = None
    batch_size: int = 16
    device: str = "cuda" if torch.cuda.is_available() else "cpu"

    def __post_init__(self) -> None:
        self.pipeline = self.pipeline or (f"{self.run}/pipeline" if self.run else None)
        self.memorized = self.memorized or self.run
        if not self.pipeline:
            raise ValueError("give --pipeline, or --run with a training run folder")
        check_pipeline(self.pipeline)

    def requests(self, prompts: Sequence[Prompt]) -> list[Request]:
        return [
            Request(p.id, n, p.text, sample_seed(self.seed, p.id, n), p.negative)
            for p in prompts[: self.limit]
            for n in range(self.samples_per_prompt)
        ]

    def measure(self) -> dict[str, float | int]:
        """The gate, the first timestep that it holds for, and what it does to the prompts it was found on."""
        memorized = load_prompts(self.memorized) if self.memorized else []
        known = {same(prompt.text) for prompt in memorized}
        ordinary = {same(p.text): p for p in load_prompts(self.ordinary) if same(p.text) not in known}
        pipe = load_pipeline(self.pipeline).to(self.device)
        pipe.scheduler = make_scheduler(pipe.scheduler, self.scheduler)
        side = self.resolution or pipe.unet.config.sample_size * pipe.vae_scale_factor

        def differences(prompts: Sequence[Prompt]) -> Tensor:
            requests = self.requests(prompts)
            device = torch.device(self.device)
            return first_differences(pipe, requests, side, self.num_inference_steps, device, self.batch_size)

        low = differences(list(ordinary.values()))
        found: dict[str, float | int] = {
            "gate": gate_threshold(low, self.false_positive_rate),
            "timestep": pipe.scheduler.timesteps[0].item(),
            "ordinary_images": len(low),
            "ordinary_median": low.median().item(),
        }
        if memorized:
            high = differences(memorized)
            found["memorized_images"], found["memorized_median"] = len(high), high.median().item()
            found["memorized_caught"] = (high >= found["gate"]).double().mean().item()
            found["auc"] = (high[:, None] > low).double().mean().item()
        return found
