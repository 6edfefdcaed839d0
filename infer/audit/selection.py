"""Which images an audit generates to find the captions that return their training image."""

from typing import NamedTuple

from data.batches import spread
from data.captioned import CaptionedImages
from data.cli import warn_no_effect
from infer.audit.budget import Plan, plan_of
from infer.audit.options import Audit
from infer.denoising.requests import Request, requests_for
from infer.predict.module import Generate
from infer.predict.run_folder import KEY


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
