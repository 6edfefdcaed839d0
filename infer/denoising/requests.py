"""Which images to generate: a request for each sample of each prompt, with its seed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass
class Requests(Sequence[Request]):
    """`samples_per_prompt` requests for each prompt, in order; each is made when it is asked for.

    `seed` is the base seed of all of them.
    """

    prompts: Sequence[Prompt]
    samples_per_prompt: int
    seed: int

    def __len__(self) -> int:
        return len(self.prompts) * self.samples_per_prompt

    def __getitem__(self, number: int) -> Request:
        prompt, sample = divmod(int(number), self.samples_per_prompt)
        return self.request(self.prompts[prompt], sample)

    def __iter__(self) -> Iterator[Request]:
        return (self.request(p, sample) for p in self.prompts for sample in range(self.samples_per_prompt))

    def request(self, p: Prompt, sample: int) -> Request:
        return Request(p.id, sample, p.text, sample_seed(self.seed, p.id, sample), p.negative, p.alternative)


def requests_for(prompts: Iterable[Prompt], samples_per_prompt: int, seed: int) -> list[Request]:
    """All of them in a list."""
    return list(Requests(list(prompts), samples_per_prompt, seed))
