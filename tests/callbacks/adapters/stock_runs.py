"""What the tests of mitigated stock pipelines share: rules, runs, references."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.guidance import Trace
from infer.denoising.hooks import GuidanceRule
from infer.denoising.loop import Denoised
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from infer.denoising.schedulers import make_scheduler
from tests.conftest import CAPTIONS

SCHEDULERS = ["ddim", "dpm", "euler", "pndm", "heun", "euler_ancestral"]
SCALES = [7.5, 1.0, 0.0, -2.0]
CPU = torch.device("cpu")
RULES: dict[str, Callable[[float], list[GuidanceRule]]] = {  # given a gate for half of the batch
    "none": lambda gate: [],
    "static": lambda gate: [StaticTransition(500)],
    "opposite": lambda gate: [StaticTransition(650, -3.0)],
    "dynamic": lambda gate: [DynamicTransition(-1.0, watch="model_output")],
    "gate": lambda gate: [StaticTransition(300, 0.5, gate=gate)],
}
CASES = [("ddim", rule, scale) for rule in RULES for scale in SCALES] + [
    (scheduler, rule, 7.5) for scheduler in SCHEDULERS[1:] for rule in RULES
]
CASES.remove(("ddim", "static", 0.0))  # would do nothing: refused
STEPS = {"dynamic": 8}  # to have minima; the others have their transitions in 4


def with_scheduler(pipe: Any, name: str) -> Any:
    pipe.scheduler = make_scheduler(pipe.scheduler, name)
    return pipe


def seeded(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(pipe: Any, prompts: Any = tuple(CAPTIONS[:2]), seeds: list[int] | None = None, **options) -> Tensor:
    """The final latents."""
    prompts = list(prompts) if isinstance(prompts, tuple) else prompts
    size = 1 if isinstance(prompts, str) else len(prompts or options["prompt_embeds"])
    seeds = list(range(size * options.get("num_images_per_prompt", 1))) if seeds is None else seeds
    options = {"num_inference_steps": 6, "height": 16, "width": 16, "output_type": "latent"} | options
    return pipe(prompts, generator=seeded(seeds), **options).images


def close(a: Tensor, b: Tensor) -> bool:
    """As near as sums over batches of other sizes come; latents go up to 30."""
    return torch.allclose(a, b, rtol=1e-6, atol=1e-5)


def requests(prompts: list[str], negative: str | None = None) -> list[Request]:
    return [Request(f"s{n}", 0, prompt, n, negative) for n, prompt in enumerate(prompts)]


def ours(pipe: Any, rules: list[GuidanceRule], scale: float, steps: int, rows: list[Request]) -> Denoised:
    return make_images(pipe, CPU, rows, 16, scale, steps, rules=rules)[1]


@contextmanager
def counted(unet: Any) -> Iterator[list[int]]:
    """The rows of each evaluation that really runs within the block."""
    calls, forward = [], unet.forward

    def counting(sample: Tensor, *args: Any, **options: Any) -> Any:
        calls.append(len(sample))
        return forward(sample, *args, **options)

    unet.forward = counting
    try:
        yield calls
    finally:
        del unet.forward


def gate_between(trace: Trace) -> float:
    """A gate that one of two samples stays below."""
    first, second = trace.difference_rms[:, 0].tolist()
    assert abs(first - second) > 1e-3 * first
    return (first + second) / 2


def assert_same_trace(trace: Trace, expected: Trace) -> None:
    for name in Trace.__dataclass_fields__:
        values = getattr(trace, name), getattr(expected, name)
        assert (values[0] is None) == (values[1] is None), name
        if values[0] is not None:
            assert torch.allclose(*values, rtol=1e-4, atol=1e-5, equal_nan=True), name


class Written:
    """Each rule as a formula: (index, timestep, u, c) -> s of each row."""

    def __init__(self, rule: str, scale: float, gate: float = 0.0):
        self.rule, self.scale, self.gate, self.curves = rule, scale, gate, []
        self.timesteps: list[float] = []
        self.since: list[float | None] = [None, None]

    def __call__(self, index: int, t: float, u: Tensor, c: Tensor) -> Tensor:
        full = self.scale
        d = (c - u).pow(2).mean((1, 2, 3)).sqrt()
        if index == 0:
            self.first = d
        if self.rule == "static":
            return torch.full_like(d, 0.0 if t > 500 else full)
        if self.rule == "opposite":
            return torch.full_like(d, -3.0 if t > 650 else full)
        if self.rule == "gate":
            return torch.where((self.first < self.gate) | torch.tensor(t <= 300), full, 0.5)
        if self.rule == "dynamic":
            if t not in self.timesteps[-1:]:  # solvers evaluate some twice
                self.timesteps.append(t)
                self.curves.append(d.tolist())
                for row, curve in enumerate(zip(*self.curves, strict=True)):
                    before, middle, now = curve[-3:] if len(curve) > 2 else (0, 0, 0)
                    if self.since[row] is None and before > middle and now > middle:
                        self.since[row] = t
            return torch.tensor([-1.0 if since is None else full for since in self.since])
        return torch.full_like(d, full)


@torch.no_grad()
def by_hand(
    pipe: Any, prompts: list[str], steps: int, scale: Callable[[int, float, Tensor, Tensor], Tensor],
    negative: str | None = None, per_prompt: int = 1,
) -> Tensor:  # fmt: skip
    """The final latents of SDXL where all rows get both predictions at each step, mixed by `scale`."""
    c_text, u_text, c_pooled, u_pooled = pipe.encode_prompt(
        prompts, num_images_per_prompt=per_prompt, negative_prompt=negative and [negative] * len(prompts)
    )
    count, scheduler = len(c_text), pipe.scheduler
    generators, ids = seeded(list(range(count))), torch.tensor([[16.0, 16, 0, 0, 16, 16]] * count)
    scheduler.set_timesteps(steps)
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in generators])
    latents = noise * scheduler.init_noise_sigma
    draws = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    texts = torch.cat([u_text, c_text])
    more = {"text_embeds": torch.cat([u_pooled, c_pooled]), "time_ids": torch.cat([ids, ids])}
    for index, t in enumerate(scheduler.timesteps):
        given = scheduler.scale_model_input(torch.cat([latents, latents]), t)
        u, c = pipe.unet(given, t, encoder_hidden_states=texts, added_cond_kwargs=more).sample.chunk(2)
        mixed = u + scale(index, float(t), u, c).view(-1, 1, 1, 1) * (c - u)
        latents = scheduler.step(mixed, t, latents, **draws).prev_sample
    return latents
