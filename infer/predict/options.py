"""What `python -m infer predict` and `compare` generate: the model, the prompts, the seeds."""

from dataclasses import dataclass

from infer.options import DenoiseOptions, PromptOptions
from infer.predict.module import PromptData


@dataclass(kw_only=True)
class GenerateOptions(DenoiseOptions, PromptOptions):
    """What to generate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prompts = self.prompts or (None if self.prompt else self.run)

    def data(self) -> PromptData:
        return PromptData(
            self.prompts, self.prompt, self.samples_per_prompt, self.seed, self.limit, self.batch_size
        )
