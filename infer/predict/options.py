"""What `python -m infer predict` and `compare` generate: the model, the prompts, the seeds."""

import hashlib
from dataclasses import dataclass
from typing import Any

from data.prompts import inline_prompts
from data.prompts.store import PromptStore, store_prompts
from infer.denoising.requests import Requests
from infer.options import DenoiseOptions, PromptOptions


@dataclass(kw_only=True)
class GenerateOptions(DenoiseOptions, PromptOptions):
    """What to generate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prompts = self.prompts or (None if self.prompt else self.run)

    def requests(self) -> Requests:
        """The images; ValueError without prompts."""
        if self.prompts is None and self.prompt is None:
            raise ValueError("give prompts: --prompts FILE, --prompt TEXT, or --run FOLDER")
        inline = self.prompt is not None
        prompts = PromptStore(inline_prompts(self.prompt)) if inline else store_prompts(self.prompts)
        return Requests(prompts.first(self.limit), self.samples_per_prompt, self.seed)

    def identity(self, requests: Requests) -> dict[str, Any]:
        """Which images; the prompts' ids and texts count, as a file may change under its name."""
        names = ("prompts", "samples_per_prompt", "seed", "limit")
        prints = {"prompts_sha256": texts_sha256(requests)[:12], "images": len(requests)}
        return {name: getattr(self, name) for name in names} | prints


def texts_sha256(requests: Requests) -> str:
    """`digest` of the list of each request's (id, prompt, negative, alternative prompt), without the list."""
    sha256, mark = hashlib.sha256(), "["
    for prompt in requests.prompts:
        text = repr(tuple(prompt))
        for _ in range(requests.samples_per_prompt):
            sha256.update((mark + text).encode(errors="surrogatepass"))
            mark = ", "
    sha256.update(b"]\0")
    return sha256.hexdigest()
