"""Measure a mitigation's numbers for a model: its static transition, its gate or threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.batches import in_batches
from infer.calibrate.options import Calibration
from infer.denoising.curves import Watch, joined
from infer.denoising.hooks import DenoisingStep
from infer.denoising.loop import prepare, step_options
from infer.denoising.requests import Request, with_negative_prompt
from infer.denoising.sampling import encode
from infer.denoising.schedulers import first_informative_step, noise_levels
from infer.metrics.roc import allowed_above, auc

LIMITS = {  # settings, and the score by which an image that reaches them counts as memorized
    "gate": "RMS of the first difference of the noise predictions",
    "threshold": "cosine of the image with its guess",
}


@torch.no_grad()
def first_differences(
    pipe: Any, device: torch.device, requests: Sequence[Request], batch_size: int, resolution: int,
    guidance_before: float, num_inference_steps: int, negative_prompt: str = "", title: str = "first steps",
) -> Tensor:  # fmt: skip
    """RMS(eps_c - eps_u) of each request at the first step with any signal, (N,): two evaluations a step.

    With zero terminal SNR the difference at the first step is always 0: that step is taken with
    `guidance_before`, as a gated mitigation takes it, and the next step counts.
    """
    scheduler, magnitudes = pipe.scheduler, []
    requests = with_negative_prompt(requests, negative_prompt)
    for batch in in_batches(tqdm(requests, title), batch_size):
        timesteps = prepare(scheduler, guidance_before, num_inference_steps)
        levels, kind = noise_levels(scheduler), scheduler.config.prediction_type
        last = first_informative_step(levels)
        noise, generators, *embeddings = encode(pipe, batch, resolution, device)
        latents = noise * scheduler.init_noise_sigma
        for index, t in enumerate(scheduler.timesteps[: last + 1]):
            inputs = scheduler.scale_model_input(latents, t)
            outputs = [pipe.unet(inputs, t, encoder_hidden_states=each).sample for each in embeddings]
            step = DenoisingStep(index, t.item(), timesteps, inputs, *levels[index], kind, 0.0, *outputs)
            if index < last:
                guided = outputs[0] + guidance_before * (outputs[1] - outputs[0])
                options = step_options(scheduler, generators)
                latents = scheduler.step(guided, t, latents, **options, return_dict=False)[0]
        magnitudes.append(step.difference_rms.cpu())
    return torch.cat(magnitudes) if magnitudes else torch.empty(0)


def reached_by(ordinary: np.ndarray, false_positive_rate: float) -> float:
    """The score that a share `false_positive_rate` of the ordinary images reaches.

    ValueError with fewer than 1 / rate prompts, which cannot show the rate.
    """
    allowed = allowed_above(len(ordinary), false_positive_rate)
    if not allowed:
        raise ValueError(
            f"{len(ordinary)} ordinary images cannot show a false-positive rate of {false_positive_rate}: "
            f"at least {math.ceil(1 / false_positive_rate)} are needed"
        )
    return float(np.sort(ordinary.astype(float))[len(ordinary) - allowed])


def finite(values: np.ndarray, group: str) -> np.ndarray:
    """The values; ValueError where a model gives no numbers, as one that overflows in float16."""
    broken = int((~np.isfinite(values).all(tuple(range(1, values.ndim)))).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(values)} {group} images have values that are not finite: nothing can be "
            "calibrated; try --model.dtype float32"
        )
    return values


def fall_timestep(timesteps: Sequence[float], magnitudes: np.ndarray, share: float) -> float:
    """The first timestep at which a curve has made `share` of its fall, from its highest value to its last.

    In the paper's Fig. 4 (SD 2.1 on LAION-10k) the mean difference of the model outputs falls from 41.5 to
    2.3: half of it by t = 514, three quarters by t = 495, and their static transition is 500.

    ValueError for a curve that falls by less than a quarter of its height: it shows no transition.
    """
    top = int(magnitudes.argmax())
    fall = magnitudes[top] - magnitudes[-1]
    if not fall >= magnitudes[top] / 4:
        raise ValueError(
            f"the mean difference does not fall (highest {magnitudes[top]:.3g} at t = {timesteps[top]:g}, "
            f"last {magnitudes[-1]:.3g}): no static transition can be read from it; try --watch model_output"
        )
    below = magnitudes[top:] <= magnitudes[top] - share * fall
    return timesteps[top + int(below.argmax())]


def lower_median(values: np.ndarray) -> float:
    """The median; of the two in the middle the lower one."""
    return float(np.quantile(values, 0.5, method="lower"))


@dataclass
class Calibrated:
    """The measured `settings` of a preset, figures `about` them, and the curves and scores behind them.

    A score is what a gate or threshold is compared with.
    """

    timesteps: list[float]
    settings: dict[str, float] = field(default_factory=dict)
    about: dict[str, float | int] = field(default_factory=dict)
    scores: dict[str, np.ndarray] = field(default_factory=dict)  # by group, (N,)
    curves: dict[str, np.ndarray] = field(default_factory=dict)  # by group, (N, steps)

    def set_limit(self, name: str, false_positive_rate: float) -> None:
        """Derive the gate or threshold from `scores`, and what it does to each group."""
        ordinary, memorized = self.scores["ordinary"], self.scores["memorized"]
        self.settings[name] = limit = reached_by(ordinary, false_positive_rate)
        self.about |= {
            "ordinary_images": len(ordinary),
            f"ordinary_above_the_{name}": int((ordinary >= limit).sum()),
            "ordinary_median": lower_median(ordinary),
        }
        if len(memorized):
            self.about |= {
                "memorized_images": len(memorized),
                "memorized_caught": float((memorized >= limit).mean()),
                "memorized_median": lower_median(memorized),
                "auc": auc(memorized, ordinary),
            }

    def set_timestep(self, fall: float) -> None:
        """Derive the static transition from the mean curve of the memorized prompts."""
        mean = self.curves["memorized"].mean(0)
        self.settings["timestep"] = fall_timestep(self.timesteps, mean, fall)
        self.about["memorized_images"] = len(self.curves["memorized"])


def measure(options: Calibration, mitigation: Any) -> Calibrated:
    """Measure what can be calibrated in a mitigation; ValueError without any of it, or prompts for it."""
    settings = mitigation.identity()["init_args"]
    targets = options.targets([name for name in mitigation.calibrated if name in settings])
    prompts = options.prompts()
    device, model = torch.device(options.device), options.model
    pipe = model.load(device)
    resolution, timesteps = model.resolution_of(pipe), model.prepare(pipe, 0.0)
    result = Calibrated(timesteps)
    if "gate" in targets:
        result.settings["gate_timestep"] = timesteps[0]
        result.about["first_timestep"] = timesteps[first_informative_step(noise_levels(pipe.scheduler))]
        for group in ("ordinary", "memorized"):
            differences = first_differences(
                pipe, device, options.requests(prompts[group]), options.batch_size, resolution,
                settings["guidance_before"], model.num_inference_steps, model.negative_prompt, group,
            )  # fmt: skip
            result.scores[group] = finite(differences.numpy(), group)
        result.set_limit("gate", options.false_positive_rate)
    if "threshold" in targets:
        rule = type(mitigation)(**settings | {"threshold": math.inf})  # which makes nothing again
        for group in ("ordinary", "memorized"):
            requests = options.requests(prompts[group])
            batches = options.denoised_batches(pipe, requests, model.guidance_scale, [rule], group)
            cosines = torch.cat([torch.empty(0), *(rule.cosine for _ in batches)])
            result.scores[group] = finite(cosines.numpy(), group)
        result.set_limit("threshold", options.false_positive_rate)
    if "timestep" in targets:
        prompts["ordinary"] = prompts["ordinary"][: len(prompts["memorized"])]
        for group in (group for group, chosen in prompts.items() if chosen):
            requests, watch = options.requests(prompts[group]), Watch()
            batches = options.denoised_batches(pipe, requests, 0.0, [watch], group)
            curves = joined([watch.curves() for _ in batches])
            result.curves[group] = finite(curves[options.watch], group)
        result.set_timestep(options.fall)
    return result
