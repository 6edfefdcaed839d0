"""What the tests of model files share: weights to tell apart, comparisons, damage, and expected failures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PARTS = ("unet", "vae", "text_encoder")


def disturbed(pipe: Any) -> Any:
    """No two weights alike: norms start as ones, biases as zeros, and exchanged ones would not show."""
    for name in PARTS:
        for weight in getattr(pipe, name).parameters():
            weight.data += 0.02 * torch.randn_like(weight)
    return pipe


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def weights(pipe: Any) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": weight.clone()
        for name in PARTS
        for key, weight in getattr(pipe, name).state_dict().items()
    }


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(
            ours[key], theirs[key], msg=lambda text, key=key: f"{key}: {text}", **tolerance
        )


def image(pipe: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return np.asarray(pipe("red square", generator=generator, num_inference_steps=3).images[0])


def failure(kind: type[Exception], match: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        call(*args, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def changed(source: Path, path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> str:
    save_file(change(load_file(source)), path)
    return str(path)
