"""Which images to generate: a request for each sample of each prompt, with its seed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

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

    def ids(self) -> Iterator[str]:
        """The ids of the prompts, which `prompts` has without their texts (`data/prompts/store.py`)."""
        return self.prompts.ids()

    def positions(self, ids: Sequence[str], which: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """The position of each row among the requests, int64 (N,); -1 for a row that is none of them.

        Row i is of prompt `ids[which[i]]` and sample `samples[i]`.
        """
        prompts = np.array(self.prompts.numbers(ids), np.int64)[which]
        known = (prompts >= 0) & (samples < self.samples_per_prompt)
        at = np.where(known, prompts * self.samples_per_prompt + samples, -1)
        return np.where(at < len(self), at, -1)


class ListedRequests(Requests):
    """Requests in a list, of any samples and seeds: few, for all are held."""

    def __init__(self, requests: Sequence[Request]):
        prompts = [Prompt(r.prompt_id, r.prompt, r.negative_prompt, r.alternative_prompt) for r in requests]
        super().__init__(prompts, samples_per_prompt=1, seed=0)  # each request has its own seed
        self.requests = list(requests)
        self.numbers = {(r.prompt_id, r.sample): number for number, r in enumerate(requests)}

    def __getitem__(self, number: int) -> Request:
        return self.requests[number]

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def ids(self) -> Iterator[str]:
        return (request.prompt_id for request in self.requests)

    def positions(self, ids: Sequence[str], which: np.ndarray, samples: np.ndarray) -> np.ndarray:
        keys = zip(which.tolist(), samples.tolist(), strict=True)
        return np.array([self.numbers.get((ids[key], sample), -1) for key, sample in keys], np.int64)


def requests_for(prompts: Iterable[Prompt], samples_per_prompt: int, seed: int) -> list[Request]:
    """All of them in a list."""
    return list(Requests(list(prompts), samples_per_prompt, seed))
