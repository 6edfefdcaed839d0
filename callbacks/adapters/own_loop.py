"""A stock call that denoises in this project's own loop, for rules that do more than change the scale."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Generator, Tensor
from tqdm import tqdm

from callbacks.adapters.guarded_call import drawn_seed, rows_of
from data.prompts import text_id
from infer.denoising.hooks import GuidanceRule, overrides
from infer.denoising.loop import Denoised, denoise
from infer.denoising.requests import Request


class RecordingUNet:
    """In place of the pipeline's UNet: keeps the embeddings that it is given, and predicts nothing."""

    def __init__(self, unet: Any):
        self.unet = unet
        self.embeddings: tuple[Tensor, ...] = ()  # unconditional and conditional, (B, tokens, width) each

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unet, name)

    def __call__(
        self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, return_dict: bool, **options: Any
    ) -> tuple[Tensor]:
        if given := [name for name, value in options.items() if value is not None]:
            raise ValueError(f"{given[0]} cannot be combined with these mitigations: leave it out")
        self.embeddings = encoder_hidden_states.chunk(2)
        return (sample,)


class OneStep:
    """In place of the pipeline's scheduler: has one step, which is the whole run of the own loop."""

    order = 1

    def __init__(
        self, scheduler: Any, unet: RecordingUNet, guidance_scale: float, rules: Sequence[GuidanceRule],
        generators: list[Generator], bar: tqdm,
    ):  # fmt: skip
        self.scheduler, self.unet, self.guidance_scale = scheduler, unet, guidance_scale
        self.rules, self.generators, self.bar = rules, generators, bar
        self.denoised: Denoised | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self.num_inference_steps, self.timesteps = num_inference_steps, self.scheduler.timesteps[:1]

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample

    def step(self, prediction: Tensor, timestep: Any, sample: Tensor, return_dict: bool) -> tuple[Tensor]:
        noise = sample / self.scheduler.init_noise_sigma
        self.denoised = denoise(
            self.unet.unet, self.scheduler, noise, *self.unet.embeddings, self.guidance_scale,
            self.num_inference_steps, self.rules, self.generators, self.bar,
        )  # fmt: skip
        return (self.denoised.latents,)


def call_in_own_loop(pipe: Any, rules: Sequence[GuidanceRule], arguments: dict[str, Any]) -> Any:
    """The output of the stock call of a mitigated StableDiffusionPipeline; the pipeline gets its `trace`.

    What the rules and stochastic schedulers draw comes from seeds that the call's generators would draw next;
    these stay where the stock call leaves them. ValueError for inputs that the own loop does not take.
    """
    if arguments.get("eta"):
        raise ValueError("eta cannot be combined with these mitigations: leave it out")
    texts, per_prompt = arguments.get("prompt"), arguments.get("num_images_per_prompt") or 1
    prompts = [texts] if isinstance(texts, str) else texts or arguments.get("prompt_embeds", [])
    rows = range(len(prompts) * per_prompt)
    inputs = {name: rows_of(name, value, rows, per_prompt) for name, value in arguments.items()}
    seeds = image_seeds(arguments.get("generator"), len(rows))
    if texts is not None:
        inputs["prompt"] = shown_prompts(pipe, rules, inputs["prompt"], inputs.get("negative_prompt"), seeds)
    elif reading := [rule for rule in rules if overrides(rule, "change_prompts", "prepare")]:
        raise ValueError(f"{type(reading[0]).__name__} reads the prompt: give prompt, not prompt_embeds")
    else:
        for rule in rules:
            rule.check_requests(pipe, [])  # what it says of the model
    unet = RecordingUNet(pipe.unet)
    with pipe.progress_bar(total=0) as bar:
        scale = float(arguments.get("guidance_scale", 7.5))
        generators = [Generator().manual_seed(seed) for seed in seeds]
        scheduler = OneStep(pipe.scheduler, unet, scale, rules, generators, bar)
        silent = {"progress_bar": lambda **options: nullcontext(tqdm(disable=True))}
        stage = pipe.twin(unet=unet, scheduler=scheduler, **silent)
        output = stage.stock_call(**inputs | {"num_images_per_prompt": 1})
    pipe.trace = scheduler.denoised
    return output


def shown_prompts(
    pipe: Any, rules: Sequence[GuidanceRule], prompts: Sequence[str], negatives: Sequence[str] | None,
    seeds: Sequence[int],
) -> list[str]:  # fmt: skip
    """The prompt of each image as the rules change it; they are prepared for the batch."""
    given = zip(prompts, seeds, negatives or [None] * len(prompts), strict=True)
    requests: Sequence[Request] = [
        Request(text_id(prompt), row, prompt, seed, negative)
        for row, (prompt, seed, negative) in enumerate(given)
    ]
    for rule in rules:
        rule.check_requests(pipe, requests)
    for rule in rules:
        requests = rule.change_prompts(pipe, requests)
    for rule in rules:
        rule.prepare(pipe, requests, pipe._execution_device)
    return [request.prompt for request in requests]


def image_seeds(generator: Generator | list[Generator] | None, count: int) -> list[int]:
    """A seed for each image: what its generator would draw next, and still does; None draws one now."""
    if isinstance(generator, list):
        return [seed for each in generator for seed in image_seeds(each, 1)]
    copy = generator and generator.clone_state()
    return [drawn_seed(copy) for _ in range(count)]
