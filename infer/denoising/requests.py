"""Which images to generate: a request for each sample of each prompt, with its seed."""

from collections.abc import Iterable
from typing import NamedTuple

from data.prompts import Prompt
from infer.denoising.noise import sample_seed


class Request(NamedTuple):
    """One image to generate."""

    prompt_id: str
    sample: int
    prompt: str
    seed: int
    negative_prompt: str | None = None
    alternative_prompt: str | None = None


def with_negative_prompt(requests: Iterable[Request], negative_prompt: str) -> list[Request]:
    """The requests; those without a negative prompt of their own have this one."""
    return [r._replace(negative_prompt=negative_prompt) if r.negative_prompt is None else r for r in requests]


def requests_for(prompts: Iterable[Prompt], samples_per_prompt: int, seed: int) -> list[Request]:
    """`samples_per_prompt` requests for each prompt, in order; `seed` is the base seed of all of them."""
    return [
        Request(p.id, sample, p.text, sample_seed(seed, p.id, sample), p.negative, p.alternative)
        for p in prompts
        for sample in range(samples_per_prompt)
    ]
