"""A finetuned model and its base model."""

from pathlib import Path

import pytest
import torch

from tests.conftest import random_pipeline


@pytest.fixture(scope="module")
def pipe():
    pipe = random_pipeline()
    pipe.unet.eval(), pipe.vae.eval(), pipe.text_encoder.eval()
    return pipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another UNet with the same text encoder."""
    other = random_pipeline()
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.mul_(0.9)
    folder = tmp_path_factory.mktemp("base")
    other.save_pretrained(folder)
    return folder
