"""A base model from nothing, in miniature: autoencoder, CLIP and UNet through their own commands."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

from data.captioned import load_captioned
from train.__main__ import main
from train.base_model.autoencoder import widened

LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
AUTOENCODER = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}
CLIP = {
    "text_config": LAYERS | {"projection_dim": 8},
    "vision_config": LAYERS | {"projection_dim": 8, "image_size": 16, "patch_size": 8},
    "projection_dim": 8,
}
UNET = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}


def train(kind: str, out: Path, shards: Path, **settings) -> Path:
    """Four steps of a command; the folder of what it exports."""
    given = {"data.sources": [str(shards)], "data.batch_size": 4, "out": str(out)} | settings
    args = [
        "--trainer.max_steps",
        "4",
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
    ]
    for key, value in given.items():
        args += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    assert main([kind, *args, "--trainer.log_every_n_steps", "1"]) == 0
    return out / "pipeline"


@pytest.mark.usefixtures("one_thread")
def test_a_base_model_from_nothing(tiny_shards: Path, tmp_path: Path) -> None:
    autoencoder = train(
        "autoencoder", tmp_path / "autoencoder", tiny_shards,
        **{"model.architecture": AUTOENCODER, "model.warmup_steps": 1, "data.resolution": 16,
           "trainer.check_val_every_n_epoch": 1},
    )  # fmt: skip
    metrics = pd.read_csv(tmp_path / "autoencoder/metrics.csv")
    assert metrics["loss"].count() == 4 and metrics["val_psnr"].count() == 2  # two epochs of two batches
    vae = AutoencoderKL.from_pretrained(autoencoder / "vae").float()
    samples = load_captioned(str(tiny_shards)).samples
    pixels = torch.stack([torch.from_numpy(sample.pixels(16)) for sample in samples]) / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)

    clip = train(
        "clip", tmp_path / "clip", tiny_shards,
        **{"model.architecture": CLIP, "model.captions": [str(tiny_shards)], "model.warmup_steps": 1,
           "data.resolution": 16, "trainer.limit_val_batches": 0},
    )  # fmt: skip
    processor = CLIPProcessor.from_pretrained(clip / "clip")
    images = [sample.rgb() for sample in samples[:2]]
    inputs = processor(text=["sun", "tea cup"], images=images, return_tensors="pt", padding="max_length")
    assert CLIPModel.from_pretrained(clip / "clip").float()(**inputs).logits_per_image.shape == (2, 2)

    base = train(
        "base", tmp_path / "base", tiny_shards,
        **{"model.autoencoder": str(autoencoder), "model.clip": str(clip), "model.unet": UNET,
           "model.scheduler": {"prediction_type": "v_prediction", "clip_sample": False},
           "model.lr": 1e-3, "data.cache": str(tmp_path / "cache"),
           "monitor.num_inference_steps": 2},
    )  # fmt: skip
    weights = torch.load(tmp_path / "base/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    exported = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    assert weights["unet.conv_in.weight"].dtype == torch.float
    assert exported["conv_in.weight"].dtype == torch.half
    pipe = StableDiffusionPipeline.from_pretrained(base)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe("sun", num_inference_steps=2).images[0].size == (16, 16)


@pytest.mark.usefixtures("one_thread")
def test_an_autoencoder_goes_on_wider_and_then_with_its_decoder_alone(
    tiny_shards: Path, tmp_path: Path
) -> None:
    options = {"model.warmup_steps": 1, "data.resolution": 16, "trainer.limit_val_batches": 0}
    first = train(
        "autoencoder", tmp_path / "first", tiny_shards, **options, **{"model.architecture": AUTOENCODER}
    )
    wide = train(
        "autoencoder", tmp_path / "wide", tiny_shards, **options,
        **{"model.autoencoder": str(first), "model.latent_channels": 6},
    )  # fmt: skip
    sharper = train(
        "autoencoder", tmp_path / "sharper", tiny_shards, **options,
        **{"model.autoencoder": str(wide), "model.freeze_encoder": True},
    )  # fmt: skip
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    before, after = (AutoencoderKL.from_pretrained(folder / "vae").float() for folder in (wide, sharper))
    with torch.no_grad():
        latents = before.encode(pixels).latent_dist.mean
        assert latents.shape[1] == 6
        torch.testing.assert_close(after.encode(pixels).latent_dist.mean, latents)
        assert (after.decode(latents).sample - before.decode(latents).sample).abs().max() > 1e-3


def test_further_latent_channels_change_nothing_while_they_are_zero() -> None:
    narrow = AutoencoderKL(**AUTOENCODER)
    wide = widened(narrow, 6, -6.0)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mean, log_variance = (getattr(wide.encode(pixels).latent_dist, name) for name in ("mean", "logvar"))
        former = narrow.encode(pixels).latent_dist
        torch.testing.assert_close(mean[:, :4], former.mean)
        torch.testing.assert_close(log_variance[:, :4], former.logvar)
        assert (log_variance[:, 4:] == -6).all() and mean[:, 4:].std() > 0.01
        mean[:, 4:] = 0
        torch.testing.assert_close(wide.decode(mean).sample, narrow.decode(mean[:, :4]).sample)
