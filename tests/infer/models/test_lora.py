"""LoRAs on top of a folder or a single file: what they add to the weights, and those that are refused."""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infer.models.lora import LORA_FILE, check_lora
from infer.models.pipeline import load_pipeline
from tests.conftest import BASE
from tests.infer.models.model_files import (
    PARTS,
    assert_equal,
    changed,
    diffusers_lora,
    failure,
    image,
    kohya_lora,
    sum_of,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("alpha", "metadata"), [(2, False), (6, True)])
def test_a_lora_of_diffusers_adds_scale_times_b_a(
    model_folder: Path, tmp_path: Path, alpha: int, metadata: bool
):
    """Without metadata diffusers takes alpha to be the rank."""
    before = weights(load_pipeline(str(model_folder)))
    added = diffusers_lora(load_pipeline(str(model_folder)), tmp_path, alpha, metadata)
    assert len(added) == 4 * 5  # four transformers, with two of to_q and of to_out.0 and one proj_in each
    for lora in (tmp_path, tmp_path / LORA_FILE):  # the folder, the file
        pipe = load_pipeline(str(model_folder), lora=str(lora), lora_scale=0.6)
        assert_equal(weights(pipe), sum_of(before, added, 0.6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("form", ["folder", "single file"])
def test_a_lora_of_kohya_adds_alpha_over_rank_times_b_a(
    model_folder: Path, model_file: Path, tmp_path: Path, form: str, original: bool
):
    single = {"name": str(model_file), "single_file_config": str(model_folder)}
    model = single if form == "single file" else {"name": str(model_folder)}
    before = load_pipeline(**model)
    added = kohya_lora(before, tmp_path / "style.safetensors", alpha=1.0, original=original)
    pipe = load_pipeline(**model, lora=str(tmp_path / "style.safetensors"), lora_scale=-0.5)
    assert_equal(weights(pipe), sum_of(weights(before), added, -0.5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_each_layer_has_its_own_alpha(model_folder: Path, tmp_path: Path, naming: str):
    """A layer without one has its rank, 2. diffusers alone gives that layer the most frequent alpha."""
    before, file = load_pipeline(str(model_folder)), tmp_path / LORA_FILE
    if naming == "kohya":
        products = kohya_lora(before, file, alpha=2.0, text=False)
    else:
        products = diffusers_lora(load_pipeline(str(model_folder)), tmp_path, 2, metadata=False)
    tensors, added = load_file(file), {}
    for key, alpha in zip(sorted(products), cycle([None, 0.5, 3.0, 3.0]), strict=False):
        layer = key.removesuffix(".weight")
        layer = f"lora_{layer.replace('.', '_')}" if naming == "kohya" else layer
        tensors.pop(f"{layer}.alpha", None)
        tensors |= {} if alpha is None else {f"{layer}.alpha": torch.tensor(alpha)}
        added[key] = products[key] * (1 if alpha is None else alpha / 2)
    save_file(tensors, file)
    pipe = load_pipeline(str(model_folder), lora=str(file))
    assert_equal(weights(pipe), sum_of(weights(before), added, 1), rtol=1e-5, atol=1e-5)


def test_a_lora_leaves_plain_parts(model_folder: Path, tmp_path: Path):
    """Prediction costs nothing extra, and the pipeline can be saved as any other."""
    plain = load_pipeline(str(model_folder))
    kohya_lora(plain, tmp_path / "style.safetensors", alpha=2.0)
    pipe = load_pipeline(str(model_folder), lora=str(tmp_path / "style.safetensors"))
    for name in PARTS:
        ours, theirs = getattr(pipe, name), getattr(plain, name)
        assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]
        assert not any(weight.requires_grad for weight in ours.parameters())
    assert not np.array_equal(image(pipe), image(plain))
    pipe.save_pretrained(tmp_path / "saved")
    assert_equal(weights(load_pipeline(str(tmp_path / "saved"))), weights(pipe), rtol=0, atol=0)


def test_a_lora_of_the_hub(model_folder: Path, tmp_path: Path, hub_cache: Callable[[str, Path], None]):
    added = diffusers_lora(load_pipeline(str(model_folder)), tmp_path / "lora", 2, metadata=False)
    hub_cache("someone/style", tmp_path / "lora")
    check_lora("someone/style")
    pipe = load_pipeline(str(model_folder), lora="someone/style")
    before = weights(load_pipeline(str(model_folder)))
    assert_equal(weights(pipe), sum_of(before, added, 1), rtol=1e-5, atol=1e-5)


def test_a_lora_of_the_hub_under_a_name_of_its_own(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub.errors import RemoteEntryNotFoundError

    class NotThere(RemoteEntryNotFoundError):
        def __init__(self):
            """Without an answer of the Hub."""

    def download(repository: str, name: str, revision: str) -> str:
        if name == LORA_FILE:
            raise NotThere
        return str(tmp_path / name)

    files = ["README.md", "style.safetensors"]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repository, revision: files)
    monkeypatch.setattr("infer.models.lora.hub_commit", lambda repository, revision: "0" * 40)
    before = load_pipeline(str(model_folder))
    added = kohya_lora(before, tmp_path / "style.safetensors", alpha=2.0)
    pipe = load_pipeline(str(model_folder), lora="someone/style")
    assert_equal(weights(pipe), sum_of(weights(before), added, 1), rtol=1e-5, atol=1e-5)
    files.append("b.safetensors")
    with pytest.raises(ValueError, match="2 other .safetensors files, not one: download the LoRA"):
        load_pipeline(str(model_folder), lora="someone/style")


def test_loras_that_cannot_be_loaded(model_folder: Path, model_file: Path, tmp_path: Path):
    """Found by the check that comes before heavy work, too."""
    folder, good = str(model_folder), tmp_path / "good.safetensors"
    kohya_lora(load_pipeline(folder), good, alpha=2.0)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(good.read_bytes()[:-100])
    bare = changed(
        good, tmp_path / "bare.safetensors", lambda tensors: {f"x.{k}": tensors[k] for k in tensors}
    )
    others = [
        changed(
            good,
            tmp_path / f"{name}.safetensors",
            lambda tensors, name=name: tensors | {f"lora_unet_conv_in.{name}": torch.ones(1)},
        )
        for name in ("dora_scale", "hada_w1_a", "lokr_w1")
    ]
    for call in (check_lora, lambda lora: load_pipeline(folder, lora=lora)):
        failure(
            FileNotFoundError, "no file '.*nothing.safetensors'", call, str(tmp_path / "nothing.safetensors")
        )
        failure(FileNotFoundError, "no file 'loras/mine.safetensors'", call, "loras/mine.safetensors")
        failure(FileNotFoundError, "no LoRA .* give a .safetensors file", call, str(tmp_path / "nothing"))
        failure(FileNotFoundError, f"a folder with {LORA_FILE}", call, str(tmp_path))
        failure(ValueError, "damaged.safetensors' is not a whole safetensors file", call, str(damaged))
        failure(ValueError, "tiny.safetensors' is no LoRA for Stable Diffusion", call, str(model_file))
        failure(ValueError, "bare.safetensors' is no LoRA for Stable Diffusion", call, bare)
        for other in others:
            failure(ValueError, "is a DoRA, LoHa or LoKr: give a plain LoRA", call, other)
    failure(FileNotFoundError, "from the Hub .* give a local file", load_pipeline, folder, lora="some/one")


def test_loras_of_another_model(model_folder: Path, tmp_path: Path):
    """Names or shapes that the model does not have, of all layers or of one: none is left out in silence."""
    folder, good = str(model_folder), tmp_path / "good.safetensors"
    kohya_lora(load_pipeline(folder), good, alpha=2.0)
    first = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"

    def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}

    changes = {
        "blocks": lambda tensors: {
            key.replace("blocks_0_", "blocks_7_").replace("blocks_1_", "blocks_7_"): tensors[key]
            for key in tensors
            if "lora_unet" in key and "blocks" in key
        },
        "block": rename(first, first.replace("blocks_1", "blocks_5")),
        "layer": rename("layers_0_mlp", "layers_9_mlp"),
        "half": lambda tensors: {key: tensors[key] for key in tensors if key != f"{first}.lora_up.weight"},
        "shape": lambda tensors: tensors | {f"{first}.lora_down.weight": torch.zeros(2, 31)},
        "bare": rename(first, f"x.{first}"),
        "rest": lambda tensors: tensors | {"lora_unet_something": torch.zeros(1)},
    }
    for name, change in changes.items():
        lora = changed(good, tmp_path / f"{name}.safetensors", change)
        check_lora(lora)  # the header does not tell
        failure(ValueError, f"{name}.safetensors' does not fit this model", load_pipeline, folder, lora=lora)
    failure(ValueError, "good.safetensors' does not fit this model", load_pipeline, str(BASE), lora=str(good))
