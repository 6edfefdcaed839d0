"""Guiders driven step by step as a pipeline does it, with made curves in the place of a model."""

from collections.abc import Iterator

import torch
from torch import Tensor

from callbacks.adapters.guiders import TransitionGuidance

FULL = 5.0
CURVES = torch.tensor(
    [
        [3.0, 2.0, 2.5, 1.0, 2.0, 1.0],  # fires at 2, once
        [5.0, 4.0, 3.0, 2.0, 2.5, 2.6],  # at 4
        [5.0, 4.0, 3.0, 2.0, 1.0, 0.5],  # never
        [1.0, 2.0, 3.0, 3.0, 4.0, 5.0],  # never: it does not fall
    ]
)
TIMESTEPS = [999.0, 800.0, 600.0, 400.0, 200.0, 1.0]


def drive(
    guider: TransitionGuidance,
    curves: Tensor,
    timesteps: list[float],
    stop: int | None = None,
    steps: int | None = None,
) -> Iterator[tuple[list[str], Tensor | None]]:
    """As a pipeline does: of each step what it evaluated and the scales (where it evaluated both).

    The unconditional prediction is 0 and the conditional one the curves' value, (B, steps), in every entry.
    """
    embeddings = {"text": (torch.ones(len(curves), 3), torch.zeros(len(curves), 3))}
    for index, timestep in enumerate(timesteps[:stop]):
        guider.set_state(index, steps or len(timesteps), torch.tensor(timestep))
        batches = guider.prepare_inputs(embeddings)
        for batch in batches:
            guider.prepare_models(None)
            assert guider.is_conditional == bool(batch.text.any())
            value = curves[:, index] if guider.is_conditional else torch.zeros(len(curves))
            batch.noise_pred = value.view(-1, 1, 1, 1).expand(-1, 2, 4, 4)
            guider.cleanup_models(None)
        output = guider(batches)[0]
        names = [getattr(batch, guider._identifier_key) for batch in batches]
        yield names, output[:, 0, 0, 0] / curves[:, index] if len(names) == 2 else None
