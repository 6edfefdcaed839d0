"""A LoRA as its own base model: switched off, it gives the detour's images with the base model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks.mitigations.detour import Detour
from callbacks.mitigations.static_transition import StaticTransition
from infer.__main__ import main
from infer.denoising.sampling import embed
from infer.models.lora_switch import without_lora
from infer.models.pipeline import load_pipeline
from tests.callbacks.mitigations.detour_batches import CPU, SWITCH, denoised
from tests.infer.denoising.loops import requests
from tests.infer.models.model_files import kohya_lora, weights
from tests.infer.predict.runs import command, pixels, refused, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")
SCALE = 0.3  # of the LoRA


@pytest.fixture(scope="module")
def lora(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of linear layers and convolutions of the UNet, one of them with a stride, and of the text encoder."""
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    kohya_lora(load_pipeline(str(model_folder)), path, alpha=1.0)
    return path


@pytest.fixture(scope="module")
def finetuned(model_folder: Path, lora: Path) -> Any:
    return load_pipeline(str(model_folder), lora=str(lora), lora_scale=SCALE)


def rule(base: Path | None = None, **options: Any) -> Detour:
    way = {"without_lora": True} if base is None else {"base_pipeline": str(base)}
    return Detour(StaticTransition(SWITCH), repulsion=1.5, **way, **options)


@torch.no_grad()
def test_switched_off_it_is_the_base_model(finetuned: Any, model_folder: Path) -> None:
    """UNet and text encoder; afterwards they are the finetuned ones to the bit, also after an exception."""
    base, before = load_pipeline(str(model_folder)), weights(finetuned)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    own = embed(finetuned, ["sun", "old map"], CPU)
    text = embed(base, ["sun", "old map"], CPU)
    expected = base.unet(x, 500, encoder_hidden_states=text).sample
    changed = finetuned.unet(x, 500, encoder_hidden_states=text).sample
    with pytest.raises(KeyError), without_lora(finetuned):
        assert torch.allclose(embed(finetuned, ["sun", "old map"], CPU), text, atol=1e-5)
        switched = finetuned.unet(x, 500, encoder_hidden_states=text).sample
        raise KeyError
    assert torch.allclose(switched, expected, atol=1e-5)
    assert (changed - expected).abs().max() > 1e-2 and (own - text).abs().max() > 1e-2
    assert torch.equal(finetuned.unet(x, 500, encoder_hidden_states=text).sample, changed)
    assert torch.equal(embed(finetuned, ["sun", "old map"], CPU), own)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(finetuned).items())


@pytest.mark.parametrize("orthogonal", [False, True])
def test_the_images_are_those_with_the_base_model(
    finetuned: Any, model_folder: Path, orthogonal: bool
) -> None:
    """At the same cost in evaluations, with the prompt and the row's own negative prompt."""
    requested = requests(3, negative_prompt=["", "tea cup", None])
    expected = denoised(finetuned, rule(model_folder, orthogonal=orthogonal), requested)
    result = denoised(finetuned, rule(orthogonal=orthogonal), requested)
    assert torch.allclose(result.latents, expected.latents, atol=1e-4)
    assert torch.equal(result.nfe, expected.nfe)
    plain = denoised(finetuned, StaticTransition(SWITCH), requested)
    assert (result.latents - plain.latents).abs().max() > 1e-2


def test_it_needs_no_second_unet(finetuned: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model holds UNet and text encoder again; the switch loads nothing, and holds two embeddings."""

    def numbers(own: Detour) -> int:
        """What the rule holds after a run, beside the pipeline's own parameters."""
        denoised(finetuned, own, requests(1))
        base = [getattr(own._base, name) for name in ("unet", "text_encoder") if own._base]
        parameters = [weight for part in base for weight in part.parameters()]
        tensors = [value for value in vars(own).values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() for tensor in [*parameters, *tensors])

    parts = [finetuned.unet, finetuned.text_encoder]
    own = sum(weight.numel() for part in parts for weight in part.parameters())
    factors = sum(factor.numel() for pair in finetuned.lora_factors.values() for factor in pair)
    assert 0 < factors < 0.1 * own  # they are there since loading
    embeddings = numbers(rule(model_folder)) - own
    monkeypatch.setattr("callbacks.mitigations.detour.load_pipeline", lambda *_, **__: pytest.fail("loads"))
    assert numbers(rule()) == embeddings < 0.05 * own


def test_the_preset(model_folder: Path, lora: Path, tmp_path: Path, capsys) -> None:
    """On the command line; without a LoRA it says what to do."""
    given = ["--prompt", "red square", "--mitigation", "detour_lora"]
    own = ["--model.lora", str(lora), "--model.lora_scale", str(SCALE)]
    assert main(command(model_folder, tmp_path / "own", 6, *given, *own)) == 0
    other = [*given, "--mitigation.without_lora", "false", "--mitigation.base_pipeline", str(model_folder)]
    assert main(command(model_folder, tmp_path / "other", 6, *other, *own)) == 0
    images = [next(iter(pixels(tmp_path / name).values())) for name in ("own", "other")]
    assert np.abs(images[0] - images[1]).max() <= 1
    row = rows_of(tmp_path / "own").iloc[0]
    assert row["mitigation"] == "detour_lora" and row["alternative_prompt"] == "the model without its LoRA"
    error = refused(command(model_folder, tmp_path / "none", 6, *given), capsys)
    assert "no LoRA to switch off; give --model.lora" in error


def test_one_alternative() -> None:
    with pytest.raises(ValueError, match="give one of captions, prompt, base_pipeline and without_lora"):
        Detour(StaticTransition(SWITCH), prompt="sun", without_lora=True)
