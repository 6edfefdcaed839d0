"""What `python -m infer predict` and `compare` generate: the model, the prompts, the seeds."""

from dataclasses import dataclass
from typing import Any

from data.files import digest
from data.prompts import inline_prompts, load_prompts
from infer.denoising.requests import Request, requests_for
from infer.options import DenoiseOptions, PromptOptions


@dataclass(kw_only=True)
class GenerateOptions(DenoiseOptions, PromptOptions):
    """What to generate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prompts = self.prompts or (None if self.prompt else self.run)

    def requests(self) -> list[Request]:
        """The images; ValueError without prompts."""
        if self.prompts is None and self.prompt is None:
            raise ValueError("give prompts: --prompts FILE, --prompt TEXT, or --run FOLDER")
        prompts = load_prompts(self.prompts) if self.prompt is None else inline_prompts(self.prompt)
        return requests_for(prompts[: self.limit], self.samples_per_prompt, self.seed)

    def identity(self, requests: list[Request]) -> dict[str, Any]:
        """Which images; the prompts' ids and texts count, as a file may change under its name."""
        texts = [(r.prompt_id, r.prompt, r.negative_prompt, r.alternative_prompt) for r in requests]
        names = ("prompts", "samples_per_prompt", "seed", "limit")
        prints = {"prompts_sha256": digest(texts)[:12], "images": len(requests)}
        return {name: getattr(self, name) for name in names} | prints
