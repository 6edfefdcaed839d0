"""Which images an audit generates to find the captions that return their training image.

With a budget of minutes they are as many as fit into it.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from data.batches import spread
from data.captioned import CaptionedImages
from data.cli import warn_no_effect
from data.files import read_object, write_json
from infer.audit.options import PHRASES_OF_A_CAPTION, USUAL_LIMIT, Audit
from infer.denoising.requests import Request, requests_for
from infer.denoising.sampling import make_images
from infer.predict.module import Generate
from infer.predict.run_folder import KEY

STEPS = 4  # denoising steps that are timed


@dataclass(frozen=True)
class Plan:
    """What is done.

    Attributes:
        captions: how many are audited.
        phrases: of how many captions the phrases are tried.
        tried: how many captions are tried under each mitigation.
    """

    captions: int
    phrases: int
    tried: int


class Selection(NamedTuple):
    """What is generated.

    Attributes:
        requests: the images.
        of: how many captions there are to choose from.
        plan: of these captions, and of what is done with them.
        unit: what is counted: `caption`, or `image` where many images are made of few prompts.
    """

    requests: list[Request]
    of: int
    plan: Plan
    unit: str

    @property
    def keys(self) -> list[str]:
        """Columns that distinguish captions, or images."""
        return KEY if self.unit == "image" else KEY[:1]

    @property
    def asked(self) -> int:
        """How many captions, or images, are to be measured."""
        return len({tuple(getattr(request, key) for key in self.keys) for request in self.requests})


def select(options: Audit, module: Generate, images: CaptionedImages) -> Selection:
    """Images of captions spread over all; of given prompts, or the empty one, images counted one by one."""
    prompts = options.prompts(images)
    first = requests_for(prompts[: options.batch_size], options.batch_size, options.seed)
    plan = plan_of(options, module, first)
    if options.prompt is None and prompts[0].text:
        requests = requests_for(spread(prompts, plan.captions), options.samples_per_prompt, options.seed)
        return Selection(requests, len(prompts), plan, "caption")
    if options.samples_per_prompt != Audit.samples_per_prompt:
        warn_no_effect("--samples_per_prompt", "images count one by one: give --limit or --minutes")
    count = plan.captions * (options.samples_per_prompt if options.minutes else 1)
    requests = requests_for(spread(prompts, count), -(-count // len(prompts)), options.seed)
    return Selection(requests, len(prompts), plan, "image")


def fitting(options: Audit, seconds_per_image: float) -> Plan:
    """Half of the time goes to captions, a quarter each to phrases and mitigations; one caption at least."""
    images = 60 * options.minutes / seconds_per_image
    samples = options.samples_per_prompt
    of_a_caption = PHRASES_OF_A_CAPTION * samples
    phrases = min(options.phrases, int(images / 4 / of_a_caption))
    left = images / 2 - phrases * of_a_caption
    tried = int(left / (max(1, len(options.mitigations)) * samples))
    return Plan(max(1, int(images / 2 / samples)), phrases, max(1, min(options.tried, tried)))


def plan_of(options: Audit, module: Generate, requests: Sequence[Request]) -> Plan:
    """The plan; with a budget of minutes it is kept in `plan.json`, so that a run goes on as it began."""
    if options.minutes is None:
        return Plan(options.limit or USUAL_LIMIT, options.phrases, options.tried)
    names = ("minutes", "samples_per_prompt", "phrases", "tried", "mitigations")
    asked = {name: getattr(options, name) for name in names} | {"model": options.model.identity()}
    path = Path(options.out) / "plan.json"
    if (known := read_object(path)).get("asked") == asked:
        return Plan(**known["plan"])
    seconds = seconds_per_image(options, module, requests[: options.batch_size])
    plan = fitting(options, seconds)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"asked": asked, "seconds_per_image": seconds, "plan": asdict(plan)})
    return plan


def seconds_per_image(options: Audit, module: Generate, requests: Sequence[Request]) -> float:
    """Seconds that an image of a full batch takes, from a few denoising steps after a first one."""
    model, device = options.model, torch.device(options.device)
    pipe = module.pipe.to(device)
    steps = min(STEPS, model.num_inference_steps)
    quick, seconds = replace(model, num_inference_steps=steps), 0.0
    for _ in range(2):  # the first run chooses kernels
        started = time.perf_counter()
        make_images(
            pipe, device, requests, quick.resolution_of(pipe), quick.guidance_scale, steps,
            quick.negative_prompt,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    return seconds / len(requests) * model.num_inference_steps / steps
