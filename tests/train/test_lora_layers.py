"""LoRA training: what is trained, what it adds, and files that stock diffusers and our loader read alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from infer.models.lora import LORA_FILE
from infer.models.pipeline import load_pipeline
from tests.conftest import random_pipeline
from tests.infer.models.model_files import assert_equal, weights
from train.lora_layers import add_lora, save_lora

pytestmark = pytest.mark.usefixtures("one_thread")
RANK = 2
TIMESTEPS = torch.tensor([10, 700])
TOKENS = torch.tensor([[0, 5, 9, 1, 1, 1, 1, 1], [0, 40, 1, 1, 1, 1, 1, 1]])


def noisy() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(pipe: Any) -> tuple[Tensor, Tensor]:
    """The UNet's, from fixed embeddings, and the text encoder's."""
    embedding = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return pipe.unet(noisy(), TIMESTEPS, embedding).sample, pipe.text_encoder(TOKENS).last_hidden_state


def prediction(pipe: Any, embedding: Tensor | None = None) -> Tensor:
    """The UNet's, from given embeddings or from the text encoder's."""
    if embedding is None:
        embedding = pipe.text_encoder(TOKENS).last_hidden_state
    return pipe.unet(noisy(), TIMESTEPS, embedding).sample


def adapted(alpha: float | None = None, text: bool = True) -> Any:
    """The random pipeline with a LoRA that changes its outputs."""
    pipe = random_pipeline()
    for part in (pipe.unet, pipe.text_encoder)[: 2 if text else 1]:
        add_lora(part, RANK, alpha)
        for weight in trainable(part).values():
            weight.data.normal_(std=0.2, generator=torch.Generator().manual_seed(weight.numel()))
    return pipe


def trainable(part: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in part.named_parameters() if weight.requires_grad}


def test_a_new_lora_changes_nothing():
    plain, pipe = random_pipeline(), random_pipeline()
    add_lora(pipe.unet, RANK, 8.0)
    add_lora(pipe.text_encoder, RANK, None)
    for ours, theirs in zip(outputs(pipe), outputs(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_attention_projections_are_trained(dtype: torch.dtype):
    """In float32; A of (rank, in), B of (out, rank)."""
    pipe = random_pipeline().to(dtype)
    projections = {
        "unet": ("to_q", "to_k", "to_v", "to_out.0"),
        "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
    }
    for part, layers in projections.items():
        module = getattr(pipe, part)
        linear = {
            name: (layer.in_features, layer.out_features)
            for name, layer in module.named_modules()
            if name.endswith(layers)
        }
        add_lora(module, RANK, None)
        expected = {f"{name}.lora_A.default.weight": (RANK, into) for name, (into, _) in linear.items()}
        expected |= {f"{name}.lora_B.default.weight": (out, RANK) for name, (_, out) in linear.items()}
        adapters = trainable(module)
        assert {name: tuple(weight.shape) for name, weight in adapters.items()} == expected
        # two of each transformer
        assert len(adapters) == {"unet": 4 * 2 * 4 * 2, "text_encoder": 4 * 2}[part]
        assert {weight.dtype for weight in adapters.values()} == {torch.float32}


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("alpha", [None, 1.0, 6.5])
def test_what_is_saved_is_what_was_trained(
    tiny_pipeline: Path, tmp_path: Path, alpha: float | None, text: bool
):
    """In our loader, in its export, and in stock diffusers; by the formula, W + alpha / rank B A."""
    trained = adapted(alpha, text)
    save_lora(tmp_path / "lora", trained.unet, trained.text_encoder)
    plain, fused = (
        load_pipeline(str(tiny_pipeline)),
        load_pipeline(str(tiny_pipeline), lora=str(tmp_path / "lora")),
    )
    fused.save_pretrained(tmp_path / "export")
    stock = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    stock.load_lora_weights(tmp_path / "lora")
    exported = StableDiffusionPipeline.from_pretrained(tmp_path / "export")
    for pipe in (fused, exported, stock):
        for ours, theirs in zip(outputs(pipe), outputs(trained), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    changes = [(one - two).abs().max() for one, two in zip(outputs(trained), outputs(plain), strict=True)]
    assert changes[0] > 0.1 and (changes[1] > 0.1) == text

    expected = weights(plain)
    for part in ("unet", "text_encoder")[: 2 if text else 1]:
        layers = trainable(getattr(trained, part))
        for name, down in layers.items():
            if "lora_A" in name:
                added = layers[name.replace("lora_A", "lora_B")].detach() @ down.detach()
                key = f"{part}.{name.removesuffix('.lora_A.default.weight')}.weight"
                expected[key] = expected[key] + (alpha or RANK) / RANK * added
    assert_equal(weights(exported), expected, rtol=1e-5, atol=1e-5)


def test_other_tools_apply_the_trained_strength(tmp_path: Path) -> None:
    """A reader that knows no alpha, and takes it for the rank: W + B A by hand; always the same file."""
    pipe = adapted(3.0)
    pipe.text_encoder.name_or_path = "/home/someone/model"
    files = []
    for number in range(3):
        save_lora(tmp_path / str(number), pipe.unet, pipe.text_encoder)
        files.append((tmp_path / str(number) / LORA_FILE).read_bytes())
    assert len(set(files)) == 1 and b"someone" not in files[0]
    tensors = load_file(tmp_path / "0" / LORA_FILE)
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.lora_B.weight" in tensors
    plain, read = random_pipeline(), random_pipeline()
    with torch.no_grad():
        for name, down in tensors.items():
            if "lora_A" in name:
                part, _, layer = name.removesuffix(".lora_A.weight").partition(".")
                weight = getattr(read, part).get_submodule(layer.removeprefix("text_model.")).weight
                weight += tensors[name.replace("lora_A", "lora_B")] @ down
    for ours, theirs, base in zip(outputs(read), outputs(pipe), outputs(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert (ours - base).abs().max() > 0.05


def gradients(pipe: Any, text: bool, checkpointing: bool) -> tuple[dict[str, Tensor], list[int]]:
    """Of all that is trained; and how often a layer of each trained part ran, there and back."""
    embedding, parts = None, {"unet": pipe.unet.train()}
    layers = [pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q]
    if text:
        parts["text_encoder"] = pipe.text_encoder.train()
        layers.append(pipe.text_encoder.encoder.layers[0].self_attn.q_proj)
    else:
        embedding = outputs(pipe)[1]
        assert not embedding.requires_grad
    if checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        if text:
            pipe.text_encoder.activation_checkpointing_enable()
    runs = [0] * len(layers)
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: runs.__setitem__(number, runs[number] + 1))
    prediction(pipe, embedding).square().sum().backward()
    weights = {f"{name}.{key}": w for name, part in parts.items() for key, w in part.named_parameters()}
    grads = {key: weight.grad for key, weight in weights.items() if weight.grad is not None}
    assert grads.keys() == {key for key, weight in weights.items() if weight.requires_grad}
    return grads, runs


@pytest.mark.parametrize("text", [True, False])
def test_checkpointing_gives_the_same_gradients(text: bool):
    """Though no input needs any: latents, tokens and, with the text encoder frozen, embeddings."""
    plain, once = gradients(adapted(3.0, text), text, checkpointing=False)
    again, twice = gradients(adapted(3.0, text), text, checkpointing=True)
    assert once == [1] * len(once) and twice == [2] * len(once)
    assert len(once) == 1 + text and all("lora_" in key for key in plain)
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    assert_equal(again, plain, rtol=1e-4, atol=1e-5)
