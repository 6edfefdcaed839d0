"""Random words, numbers or repeated words in the prompt (Somepalli et al.)."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jsonargparse.typing import PositiveInt

from callbacks.mitigations.base import Mitigation
from data.regimes.caption_edits import with_numbers_added, with_words_added, with_words_repeated
from infer.denoising.hooks import Request
from infer.denoising.noise import sample_seed

Edit = Literal["word", "number", "repeat"]


class PromptEdit(Mitigation):
    """Insert words at random positions of the prompt; each image has its own, from its seed.

    Somepalli et al., NeurIPS 2023 (arXiv:2305.20086), inference-time mitigation: random words (RT), random
    numbers below 100,000 (RNA), or words of the prompt repeated (CWR). The prompt's own words stay, in their
    order. Costs nothing.

    Args:
        edit: what is inserted: word, random tokens of the tokenizer; number; repeat, words of the prompt.
        insertions: how many.
    """

    def __init__(self, edit: Edit = "word", insertions: PositiveInt = 2):
        self.edit, self.insertions = edit, insertions

    def change_prompts(self, pipe: Any, requests: Sequence[Request]) -> Sequence[Request]:
        return [request._replace(prompt=self.edited(pipe.tokenizer, request)) for request in requests]

    def edited(self, tokenizer: Any, request: Request) -> str:
        """The prompt that the model is shown."""
        random = np.random.default_rng(sample_seed(request.seed, f"PromptEdit {self.edit}", 0))
        if self.edit == "word":
            return with_words_added(request.prompt, tokenizer, random, self.insertions)
        if self.edit == "number":
            return with_numbers_added(request.prompt, random, self.insertions)
        return with_words_repeated(request.prompt, random, self.insertions)
