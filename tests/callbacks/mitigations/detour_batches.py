"""What the tests of the detour share: a finetuned model, its base model, and batches made under a rule."""

from pathlib import Path

import pytest
import torch

from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from tests.conftest import random_pipeline

CPU, STEPS, SCALE, SWITCH = torch.device("cpu"), 10, 7.5, 500


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


def made_by(pipe, rule, asked: list[Request]):
    return make_images(pipe, CPU, asked, 16, SCALE, STEPS, rules=[rule])[1]
