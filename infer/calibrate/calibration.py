"""Find a mitigation's numbers for a model: its static transition, and the gate for ordinary prompts."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import OpenUnitInterval, PositiveInt
from torch import Tensor
from tqdm import tqdm

from data.prompts import Prompt, load_prompts, same
from infer.denoising.curves import watched_curves
from infer.denoising.guidance import Guidance, Rows
from infer.denoising.hooks import DenoisingStep, Request
from infer.denoising.loop import prepare
from infer.denoising.noise import sample_seed
from infer.denoising.sampling import encode
from infer.denoising.schedulers import noise_levels
from infer.metrics.roc import auc
from infer.options import DenoiseOptions, device_of


@torch.no_grad()
def first_differences(
    pipe: Any,
    requests: Sequence[Request],
    resolution: int,
    num_inference_steps: int,
    device: torch.device,
    batch_size: int = 16,
    negative_prompt: str = "",
    title: str = "first steps",
) -> Tensor:
    """RMS(eps_c - eps_u) of each request at the first step of the schedule, (N,): two evaluations each."""
    prepare(pipe.scheduler, 0.0, num_inference_steps)
    t, found = pipe.scheduler.timesteps[0], []
    for start in tqdm(range(0, len(requests), batch_size), title):
        batch = requests[start : start + batch_size]
        noise, _, *embeddings = encode(pipe, batch, resolution, device, negative_prompt)
        latents = pipe.scheduler.scale_model_input(noise * pipe.scheduler.init_noise_sigma, t)
        step = DenoisingStep(
            0, t.item(), pipe.scheduler.timesteps.tolist(), latents, *noise_levels(pipe.scheduler)[0],
            pipe.scheduler.config.prediction_type, -1.0,
        )  # fmt: skip

        def predict(rows: Rows, latents: Tensor = latents, embeddings: list = embeddings) -> Tensor:
            inputs = latents[rows.index]
            return pipe.unet(inputs, t, encoder_hidden_states=rows.pick(*embeddings), return_dict=False)[0]

        Guidance((), len(batch), device)(step, predict)
        found.append(step.difference_rms.cpu())
        pipe.scheduler.set_timesteps(num_inference_steps)  # forget where it was
    return torch.cat(found) if found else torch.empty(0)


def check_rate(false_positive_rate: float) -> None:
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate must be in (0, 1), not {false_positive_rate}")


def gate_threshold(ordinary: Tensor, false_positive_rate: float) -> float:
    """The magnitude that a share `false_positive_rate` of the ordinary prompts' first differences reaches.

    ValueError for a rate outside (0, 1), or one that so few prompts cannot show: fewer than 1 / rate.
    """
    check_rate(false_positive_rate)
    if len(ordinary) * false_positive_rate < 1:
        raise ValueError(
            f"{len(ordinary)} ordinary images cannot show a false-positive rate of {false_positive_rate}: "
            f"at least {math.ceil(1 / false_positive_rate)} are needed"
        )
    allowed = math.floor(len(ordinary) * false_positive_rate + 1e-9)
    return ordinary.double().sort().values[len(ordinary) - allowed].item()


def check_finite(values: np.ndarray, group: str) -> None:
    """ValueError where a model gives no numbers, as one that overflows in float16."""
    rows = values[:, None] if values.ndim == 1 else values
    broken = int((~np.isfinite(rows).all(1)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(values)} {group} images have differences that are not finite: nothing can be "
            "calibrated; try --model.dtype float32"
        )


def fall_timestep(timesteps: Sequence[float], magnitudes: np.ndarray, share: float) -> float:
    """The first timestep at which a curve has made `share` of its fall, from its highest value to its last.

    In the paper's Fig. 4 (SD 2.1 on LAION-10k) the mean difference of the model outputs falls from 41.5 to
    2.3: half of it by t = 514, three quarters by t = 495, and their static transition is 500.

    ValueError for a curve that does not fall by at least a quarter of its height: it shows no transition.
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


@dataclass(kw_only=True)
class Calibration(DenoiseOptions):
    """What to calibrate, and on what.

    A static transition's timestep is found from the memorized prompts, without guidance; a gate, from
    ordinary prompts, where these are given.

    Args:
        out: the preset to write, a YAML file that --mitigation takes; beside it a picture of why.
        mitigation: the preset to put the numbers into: a name in configs/mitigation, or a path.
        ordinary: prompts that are not memorized (what --prompts takes), for the gate; memorized ones are
            left out.
        false_positive_rate: share of the ordinary images that may pass the gate for memorized.
        memorized: prompts that are; null: those that `run` duplicated.
        watch: the curve whose fall gives the static transition: the difference of the model outputs, as in
            the paper's Fig. 4, or of the noise predictions.
        fall: share of that fall which must be made, 0..1.
        samples_per_prompt: noises per prompt.
        device: such as cpu or cuda:1; null: a GPU where there is one.
    """

    out: str
    mitigation: str
    ordinary: str | None = None
    false_positive_rate: OpenUnitInterval = 0.05
    memorized: str | None = None
    watch: Literal["model_output", "epsilon"] = "model_output"
    fall: OpenUnitInterval = 0.5
    samples_per_prompt: PositiveInt = 1
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memorized = self.memorized or self.run
        if not self.out.endswith((".yaml", ".yml")):
            raise ValueError(f"out is the preset to write, a .yaml file, not {self.out!r}")
        if Path(self.out).is_dir():
            raise ValueError(f"out {self.out!r} is a folder: name a .yaml file in it")
        self.device = str(device_of(self.device))

    def requests(self, prompts: Sequence[Prompt]) -> list[Request]:
        return [
            Request(p.id, n, p.text, sample_seed(self.seed, p.id, n), p.negative)
            for p in prompts[: self.limit]
            for n in range(self.samples_per_prompt)
        ]

    def told(self, found: "Calibrated") -> str:
        """What was done, as comments."""
        lines = []
        if "timestep" in found.settings:
            name = "model outputs" if self.watch == "model_output" else "noise predictions"
            lines.append(
                f"# timestep: first at which the mean difference of the {name}, without guidance, has made "
                f"{self.fall:g} of its fall, over {self.memorized!r}"
            )
        if "gate" in found.settings:
            lines.append(f"# gate: false-positive rate {self.false_positive_rate:g}, over {self.ordinary!r}")
        return "".join(f"{line}\n" for line in lines)

    def measure(self, options: Sequence[str]) -> "Calibrated":
        """Find what a mitigation with these options can be told: `timestep`, `gate`.

        ValueError where there is nothing to find, or to find it from.
        """
        static, gated = "timestep" in options, "gate" in options and self.ordinary is not None
        if self.ordinary is not None and not gated:
            raise ValueError(f"{self.mitigation!r} has no gate: leave --ordinary out")
        if static and not self.memorized:
            raise ValueError(
                "the static transition is found from memorized prompts: give --memorized or --run"
            )
        if not (static or gated):
            what = "give --ordinary, for its gate" if "gate" in options else "it has no timestep and no gate"
            raise ValueError(f"nothing can be calibrated in {self.mitigation!r}: {what}")
        for name, used in (("false_positive_rate", gated), ("fall", static), ("watch", static)):
            if not used and getattr(self, name) != getattr(type(self), name):
                what = (
                    "the gate's: give --ordinary too"
                    if name == "false_positive_rate"
                    else "a static transition's"
                )
                raise ValueError(f"{name} does nothing for {self.mitigation!r} here, it is {what}")
        memorized = load_prompts(self.memorized) if self.memorized else []
        known = {same(prompt.text) for prompt in memorized}
        everything = load_prompts(self.ordinary) if gated else []
        ordinary = list({same(p.text): p for p in everything if same(p.text) not in known}.values())
        if gated and not ordinary:
            raise ValueError(f"all prompts of {self.ordinary!r} are memorized ones")
        device = torch.device(self.device)
        pipe = self.model.load(device)
        side, steps = self.model.resolution_of(pipe), self.model.num_inference_steps
        where = (side, steps, device, self.batch_size, self.model.negative_prompt)
        found = Calibrated(self.model.prepare(pipe, 0.0))
        if gated:
            low = first_differences(pipe, self.requests(ordinary), *where, title="ordinary")
            high = first_differences(pipe, self.requests(memorized), *where, title="memorized")
            check_finite(low.numpy(), "ordinary")
            check_finite(high.numpy(), "memorized")
            found.put_gate(low, high, self.false_positive_rate)
        if static:
            for group, prompts in {"memorized": memorized, "ordinary": ordinary[: len(memorized)]}.items():
                if prompts:
                    requests = self.requests(prompts)
                    found.curves[group] = watched_curves(
                        pipe,
                        requests,
                        side,
                        0.0,
                        steps,
                        device,
                        self.batch_size,
                        self.model.negative_prompt,
                        title=group,
                    )[1][self.watch]
                    check_finite(found.curves[group], group)
            mean = found.curves["memorized"].mean(0)
            found.settings["timestep"] = fall_timestep(found.timesteps, mean, self.fall)
            found.about["memorized_images"] = len(found.curves["memorized"])
        return found


@dataclass
class Calibrated:
    """What was found: `settings` for the preset, what to tell `about` them, and what they were read from."""

    timesteps: list[float]
    settings: dict[str, float] = field(default_factory=dict)
    about: dict[str, float | int] = field(default_factory=dict)
    firsts: dict[str, np.ndarray] = field(default_factory=dict)  # ordinary and memorized, (N,)
    curves: dict[str, np.ndarray] = field(default_factory=dict)  # memorized and ordinary, (N, steps)

    def put_gate(self, ordinary: Tensor, memorized: Tensor, false_positive_rate: float) -> None:
        """The gate, the first timestep that it holds for, and what it does to the images it was found on."""
        gate = gate_threshold(ordinary, false_positive_rate)
        self.settings |= {"gate": gate, "gate_timestep": self.timesteps[0]}
        self.firsts = {"ordinary": ordinary.numpy(), "memorized": memorized.numpy()}
        self.about |= {
            "ordinary_images": len(ordinary),
            "ordinary_above_the_gate": int((ordinary.double() >= gate).sum()),
            "ordinary_median": ordinary.median().item(),
        }
        if len(memorized):
            self.about |= {
                "memorized_images": len(memorized),
                "memorized_caught": (memorized.double() >= gate).double().mean().item(),
                "memorized_median": memorized.median().item(),
                "auc": auc(memorized.numpy(), ordinary.numpy()),
            }


def predict_command(calibration: Any) -> str:
    """The command that predicts with a calibrated preset: the model and its schedule as it was calibrated."""
    words = ["python", "-m", "infer", "predict", "--mitigation", calibration.out]
    for option in fields(calibration.model):
        if (value := getattr(calibration.model, option.name)) != option.default:
            words += [f"--model.{option.name}", str(value)]
    prompts = calibration.memorized or calibration.ordinary
    return shlex.join([*words, "--prompts", prompts, "--out", str(Path(calibration.out).with_suffix(""))])
