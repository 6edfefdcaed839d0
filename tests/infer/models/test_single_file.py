"""Models as a single file in the original layout: the same as their folder, or refused in one line."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer.models.pipeline import check_pipeline, load_pipeline
from tests.conftest import random_pipeline
from tests.infer.models.model_files import (
    PARTS,
    assert_equal,
    changed,
    disturbed,
    edit,
    failure,
    image,
    weights,
)
from tests.infer.models.single_file import write_single_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_single_file_is_the_folder(model_folder: Path, tmp_path: Path, kind: str):
    """SD 2 has OpenCLIP's names, and linear projections around attention."""
    folder = model_folder
    if kind == "sd2":
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel

        pipe = random_pipeline()
        pipe.unet = UNet2DConditionModel.from_config(
            pipe.unet.config, use_linear_projection=True, layers_per_block=2
        )
        pipe.text_encoder.config.num_hidden_layers = 3
        pipe.text_encoder = CLIPTextModel(pipe.text_encoder.config)
        folder = tmp_path / "sd2"
        disturbed(pipe).save_pretrained(folder)
    pipe = load_pipeline(str(folder))
    path = write_single_file(pipe, tmp_path / "model.safetensors", open_clip=kind == "sd2")
    loaded = load_pipeline(str(path), single_file_config=str(folder))
    assert_equal(weights(loaded), weights(pipe), rtol=0, atol=0)
    assert not any(weight.requires_grad for name in PARTS for weight in getattr(loaded, name).parameters())
    assert not any(getattr(loaded, name).training for name in PARTS)
    assert np.array_equal(image(loaded), image(pipe))


def test_the_scheduler_is_that_of_the_configs(model_file: Path, model_folder: Path, tmp_path: Path):
    """A checkpoint does not say what it predicts. Configs and tokenizer are enough, others are not loaded."""
    config = tmp_path / "config"
    shutil.copytree(model_folder, config, ignore=shutil.ignore_patterns("*.safetensors"))
    edit(config / "scheduler/scheduler_config.json", {"prediction_type": "epsilon"})
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit(config / "model_index.json", {"safety_checker": checker})
    scheduler = load_pipeline(str(model_file), single_file_config=str(config)).scheduler
    assert type(scheduler).__name__ == "DDIMScheduler"
    assert (scheduler.config.prediction_type, scheduler.config.beta_schedule) == ("epsilon", "scaled_linear")


def test_the_configs_can_come_from_the_hub(
    model_file: Path, model_folder: Path, hub_cache: Callable[[str, Path], None]
):
    hub_cache("someone/tiny", model_folder)
    pipe = load_pipeline(str(model_file), single_file_config="someone/tiny")
    assert_equal(weights(pipe), weights(load_pipeline(str(model_folder))), rtol=0, atol=0)


def test_single_files_that_cannot_be_loaded(model_folder: Path, model_file: Path, tmp_path: Path):
    """Found by the check that comes before heavy work, too."""
    folder = str(model_folder)
    names = ("missing.safetensors", "damaged.safetensors", "empty.safetensors", "pickle.safetensors")
    missing, damaged, empty, disguised = (str(tmp_path / name) for name in names)
    Path(damaged).write_bytes(model_file.read_bytes()[:-1000])
    Path(empty).touch()
    torch.save({"model.diffusion_model.x": torch.zeros(1)}, disguised)

    def without(prefix: str) -> str:
        return changed(
            model_file,
            tmp_path / f"without_{prefix}.safetensors",
            lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)},
        )

    layer = without("model.diffusion_model.input_blocks.3.0.")
    failure(ValueError, "does not fit .* lacks weights", load_pipeline, layer, single_file_config=folder)
    xl = changed(
        model_file,
        tmp_path / "xl.safetensors",
        lambda tensors: {key.replace("cond_stage_model", "conditioner"): t for key, t in tensors.items()},
    )
    part = str(model_folder / "unet/diffusion_pytorch_model.safetensors")
    for load in (check_pipeline, lambda name: load_pipeline(name, single_file_config=folder)):
        failure(FileNotFoundError, "no file '.*missing.safetensors'", load, missing)
        failure(FileNotFoundError, "no file 'models/missing.safetensors'", load, "models/missing.safetensors")
        for name in (damaged, empty, disguised):
            failure(ValueError, "not a whole safetensors file .* download or convert it again", load, name)
        failure(ValueError, r"lacks the VAE \(first_stage_model", load, without("first_stage_model"))
        failure(ValueError, r"lacks the text encoder \(cond_stage", load, without("cond_stage_model"))
        failure(ValueError, "lacks the UNet .* the VAE .* the text encoder", load, part)
        failure(ValueError, "is a Stable Diffusion XL checkpoint", load, xl)


def test_configs_that_cannot_be_used(model_folder: Path, model_file: Path, tmp_path: Path):
    name, folder = str(model_file), str(model_folder)
    for call in (check_pipeline, load_pipeline):
        for other in (folder, "someone/tiny"):
            failure(ValueError, "config is for a single .safetensors", call, other, single_file_config=folder)
        missing = str(tmp_path / "nothing")
        failure(FileNotFoundError, "no model folder", call, name, single_file_config=missing)
        failure(FileNotFoundError, "it lacks unet, vae", call, name, single_file_config=str(tmp_path))
    advice = "give single_file_config, a diffusers"  # without a network
    failure(FileNotFoundError, advice, load_pipeline, name, single_file_config="someone/missing")
    failure(FileNotFoundError, f"that diffusers chose .* {advice}", load_pipeline, name)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"block_out_channels": [8, 32]}),  # shapes differ
        ("unet", {"layers_per_block": 2}),  # the file has too few blocks
        ("vae", {"mid_block_add_attention": False}),  # the model lacks layers of the file
        ("vae", {"block_out_channels": [8]}),
        ("text_encoder", {"num_hidden_layers": 2}),
    ],
)
def test_configs_of_another_architecture(
    model_folder: Path, model_file: Path, tmp_path: Path, part: str, change: dict[str, Any]
):
    """diffusers itself would leave out layers that the model lacks."""
    config = tmp_path / "config"
    shutil.copytree(model_folder, config)
    edit(config / part / "config.json", change)
    name = str(model_file)
    failure(ValueError, "does not fit the configs", load_pipeline, name, single_file_config=str(config))
