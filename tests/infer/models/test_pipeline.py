"""Models of every form: dtype, silence, no pickles, checks that let pass what can be loaded, the Hub."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infer.models.hub import hub_commit, one_at_a_time
from infer.models.lora import LORA_FILE, check_lora
from infer.models.pipeline import (
    MIRRORS,
    check_pipeline,
    fingerprint,
    load_pipeline,
    pipeline_class,
    resolved_revision,
)
from tests.infer.models.model_files import changed, diffusers_lora, failure, kohya_lora, weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def style(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA of kohya's that leaves the text encoder alone."""
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    kohya_lora(load_pipeline(str(model_folder)), path, alpha=2.0, text=False)
    return str(path)


def test_dtype_is_that_of_all_weights(model_folder: Path, model_file: Path, style: str):
    for name, config in ((str(model_folder), None), (str(model_file), str(model_folder))):
        pipe = load_pipeline(name, dtype=torch.bfloat16, lora=style, single_file_config=config)
        assert {weight.dtype for weight in weights(pipe).values()} == {torch.bfloat16}


def test_loading_says_nothing(
    model_folder: Path, model_file: Path, style: str, capfd: pytest.CaptureFixture, recwarn: Any
):
    """diffusers would warn of a LoRA that leaves the text encoder alone."""
    handler, records = logging.Handler(), []
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel("WARNING")
    try:
        load_pipeline(str(model_file), single_file_config=str(model_folder), lora=style)
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
    for call in (check_pipeline, check_lora, lambda name: load_pipeline(str(model_folder), lora=name)):
        failure(ValueError, "is a pickle, which may run code .* convert it to .safetensors", call, str(path))
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_searched_for_safetensors_only(model_folder: Path, tmp_path: Path):
    """A healthy pickle instead of a pipeline's part or a LoRA is not read; a pipeline's is named."""
    model, lora = tmp_path / "model", tmp_path / "lora"
    shutil.copytree(model_folder, model)
    path = model / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    named = "unet has no .safetensors, only diffusion_pytorch_model.bin, a pickle"
    failure(FileNotFoundError, named, load_pipeline, str(model))
    lora.mkdir()
    torch.save({}, lora / "pytorch_lora_weights.bin")
    failure(FileNotFoundError, f"a folder with {LORA_FILE}", load_pipeline, str(model_folder), lora=str(lora))


def test_checks_let_pass_what_can_be_loaded(
    model_folder: Path, model_file: Path, style: str, caplog: pytest.LogCaptureFixture
):
    for name in (str(model_folder), "someone/tiny", str(model_file)):
        check_pipeline(name)
    for config in (str(model_folder), "someone/tiny"):
        check_pipeline(str(model_file), config)
    for lora in (style, "someone/style"):
        check_lora(lora, 0.5)
    assert not caplog.records
    check_lora(None, 0.5)
    assert "lora_scale has no effect" in caplog.text


def test_a_fingerprint_tells_models_apart(model_folder: Path, model_file: Path, tmp_path: Path):
    """A change of one layer anywhere in a file changes it; the folder that the file is in does not."""
    whole = fingerprint(str(model_file))
    shutil.copy(model_file, tmp_path / model_file.name)
    assert fingerprint(str(tmp_path / model_file.name)) == whole
    shutil.copy(model_file, tmp_path / "renamed.safetensors")
    assert fingerprint(str(tmp_path / "renamed.safetensors")) != whole
    key = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    copy = tmp_path / model_file.name
    assert fingerprint(changed(model_file, copy, lambda tensors: tensors | {key: tensors[key] + 1})) != whole


def test_a_folder_with_a_lora_fused_into_it_has_another_fingerprint(model_folder: Path, tmp_path: Path):
    """Its files have the names and sizes that they had, and only tensors between the others differ."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    before = fingerprint(str(folder))
    assert before == fingerprint(str(model_folder))
    diffusers_lora(load_pipeline(str(folder)), tmp_path / "lora", 2, metadata=False)
    load_pipeline(str(folder), lora=str(tmp_path / "lora")).unet.save_pretrained(folder / "unet")
    after = fingerprint(str(folder))
    (folder / "training.json").write_text('{"steps": 10}')
    assert len({before, after, fingerprint(str(folder)), fingerprint(str(tmp_path / "lora"))}) == 4


def test_a_hub_model_is_known_by_its_commit(hub_cache: Callable[[str, Path], None], model_folder: Path):
    """The commit is that which is loaded, also of a model that left the Hub, and the model keeps its name."""
    name = next(iter(MIRRORS))
    hub_cache(name, model_folder)
    assert resolved_revision(name) == fingerprint(name) == "0" * 40
    assert resolved_revision(name, "1" * 40) == "1" * 40
    assert load_pipeline(name).config._name_or_path == name
    failure(FileNotFoundError, "cannot load", load_pipeline, name, revision="1" * 40)
    for unknown in (str(model_folder), "someone/missing"):
        assert resolved_revision(unknown) is None
    assert fingerprint("someone/missing") is None


def test_a_model_is_downloaded_by_one_process_at_a_time(
    hub_cache: Callable[[str, Path], None], model_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    hub_cache("someone/shared", model_folder)
    running, most = [], []

    def download(name: str, **options: Any) -> Path:
        running.append(name)
        most.append(len(running))
        time.sleep(0.2)
        running.remove(name)
        return model_folder

    # threads that build models at once upset torch's default device
    loaded = load_pipeline(str(model_folder))
    monkeypatch.setattr(pipeline_class(), "from_pretrained", staticmethod(lambda *_, **__: loaded))
    monkeypatch.setattr(pipeline_class(), "download", staticmethod(download))
    threads = [threading.Thread(target=load_pipeline, args=("someone/shared",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_without_a_folder_for_locks_all_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATTRACTION_BASIN_CACHE", str(tmp_path / "file"))
    with one_at_a_time("someone/tiny"), one_at_a_time("someone/tiny"):
        pass


def test_a_model_that_left_the_hub_names_its_mirror(hub_cache: Callable[[str, Path], None]):
    hub_commit.cache_clear()
    for name, mirror in MIRRORS.items():
        message = f"it left the Hub, --model.pipeline {mirror} is a mirror$"
        failure(FileNotFoundError, message, load_pipeline, name)
    failure(FileNotFoundError, "check the id and revision", load_pipeline, "stabilityai/stable-diffusion-2")
