"""Models of every form: dtype, silence, no pickles, checks that let pass what can be loaded, fingerprints."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infer.models.lora import LORA_FILE, check_lora
from infer.models.pipeline import MIRRORS, check_pipeline, fingerprint, load_pipeline
from tests.conftest import BASE
from tests.infer.models.lora_files import diffusers_lora, kohya_lora
from tests.infer.models.model_files import changed, failure, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_dtype_is_that_of_all_weights(model_folder: Path, model_file: Path, tmp_path: Path):
    kohya_lora(load_pipeline(str(model_folder)), tmp_path / "style.safetensors", alpha=2.0)
    lora = str(tmp_path / "style.safetensors")
    for name, config in ((str(model_folder), None), (str(model_file), str(model_folder))):
        pipe = load_pipeline(name, dtype=torch.bfloat16, lora=lora, config=config)
        assert {weight.dtype for weight in weights(pipe).values()} == {torch.bfloat16}


def test_loading_says_nothing(
    model_folder: Path, model_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture, recwarn: Any
):
    """diffusers would warn of a LoRA that leaves the text encoder alone."""
    kohya_lora(load_pipeline(str(model_folder)), tmp_path / "style.safetensors", alpha=2.0, text=False)
    handler, records = logging.Handler(), []
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel("WARNING")
    try:
        load_pipeline(str(model_file), config=str(model_folder), lora=str(tmp_path / "style.safetensors"))
        assert {logger.level for logger in loggers} == {logging.WARNING}  # as it was
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert [record.getMessage() for record in records] == []
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth"])
def test_pickles_are_refused(model_folder: Path, tmp_path: Path, suffix: str):
    """Nothing in one is read: it could run code."""

    class Exploit:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / f"model{suffix}"
    torch.save(Exploit(), path)
    for call in (
        check_pipeline,
        load_pipeline,
        check_lora,
        lambda name: load_pipeline(str(model_folder), lora=name),
    ):
        failure(ValueError, "is a pickle, which may run code .* convert it to .safetensors", call, str(path))
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_searched_for_safetensors_only(model_folder: Path, tmp_path: Path):
    """With pickles in it, of the pipeline or the LoRA, it is not whole."""
    model, lora = tmp_path / "model", tmp_path / "lora"
    shutil.copytree(model_folder, model)
    path = model / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    failure(FileNotFoundError, "is not a whole diffusers pipeline", load_pipeline, str(model))
    lora.mkdir()
    torch.save({}, lora / "pytorch_lora_weights.bin")
    failure(FileNotFoundError, f"a folder with {LORA_FILE}", load_pipeline, str(model_folder), lora=str(lora))


def test_checks_let_pass_what_can_be_loaded(model_folder: Path, model_file: Path, tmp_path: Path):
    diffusers_lora(load_pipeline(str(model_folder)), tmp_path, 2, metadata=False)
    check_pipeline(str(model_folder))
    check_pipeline("someone/tiny")
    check_pipeline(str(model_file))
    check_pipeline(str(model_file), str(model_folder))
    check_pipeline(str(model_file), "someone/tiny")
    check_lora(str(tmp_path))
    check_lora(str(tmp_path / LORA_FILE), 0.5)
    check_lora("someone/style", 0.5)


def test_a_fingerprint_tells_models_apart(model_folder: Path, model_file: Path, tmp_path: Path):
    """A change of one layer anywhere in a file changes it; the place of the file does not."""
    whole = fingerprint(str(model_file))
    shutil.copy(model_file, tmp_path / model_file.name)
    assert fingerprint(str(tmp_path / model_file.name)) == whole
    shutil.copy(model_file, tmp_path / "renamed.safetensors")
    assert fingerprint(str(tmp_path / "renamed.safetensors")) != whole
    for key in (
        "first_stage_model.decoder.mid.block_1.conv1.weight",
        "model.diffusion_model.time_embed.2.weight",  # at the end
        "model.diffusion_model.middle_block.0.in_layers.2.weight",
    ):
        path = changed(
            model_file,
            tmp_path / model_file.name,
            lambda tensors, key=key: tensors | {key: tensors[key] + 1},
        )
        assert fingerprint(path) != whole, key
    diffusers_lora(load_pipeline(str(model_folder)), tmp_path / "lora", 2, metadata=False)
    trained = fingerprint(str(tmp_path / "lora"))
    assert trained == fingerprint(str(tmp_path / "lora"))
    diffusers_lora(load_pipeline(str(BASE)), tmp_path / "lora", 2, metadata=False)
    assert fingerprint(str(tmp_path / "lora")) != trained
    assert fingerprint("someone/tiny") is None


@pytest.mark.parametrize("name", MIRRORS)
def test_a_model_that_left_the_hub_names_its_mirror(name: str, hub_cache: Any):
    mirror = f"which left the Hub: --model.pipeline {MIRRORS[name]} is a mirror$"
    failure(FileNotFoundError, mirror, load_pipeline, name)


def test_a_model_that_left_the_hub_is_taken_from_the_cache(hub_cache: Any, model_folder: Path):
    name = next(iter(MIRRORS))
    hub_cache(name, model_folder)
    assert load_pipeline(name).unet.config.sample_size == 8


def test_a_model_without_a_known_mirror_is_offered_none(hub_cache: Any):
    failure(FileNotFoundError, "check the id and revision", load_pipeline, "stabilityai/stable-diffusion-2")
