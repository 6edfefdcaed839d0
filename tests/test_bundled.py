"""The bundled model is what the README says: classes, size, sharpness; and the demo's commands run on it."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import infer.__main__
import train.__main__
from data.captioned import load_captioned
from data.emoji import BASE, HELD_OUT, SHARDS, STYLES
from tests.data.image_files import write_tar
from tests.infer.report.folders import Page
from train.base_model.autoencoder import psnr

CLIP = BASE.with_name("clip")


def test_it_is_a_stable_diffusion_of_the_real_classes_and_small() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(BASE)
    kinds = [type(part).__name__ for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer)]
    assert kinds == ["UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTokenizer"]
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    files = [path for folder in (BASE, CLIP, SHARDS) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 70e6


def test_it_reads_any_prompt_to_its_end() -> None:
    """Each byte is a token: characters that no caption has do not end the prompt."""
    from transformers import CLIPTokenizer

    for folder in (BASE / "tokenizer", CLIP):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        tokens = tokenizer("a cat! & caf\u00e9, \u96ea dog").input_ids
        assert tokens.count(tokenizer.eos_token_id) == 1 and tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokens[1:-1]).split() == ["a", "cat", "!", "&", "café", ",", "雪", "dog"]


@pytest.mark.parametrize("style", [STYLES[0], HELD_OUT])
def test_the_autoencoder_is_sharp(style: str) -> None:
    """Mean PSNR of 60 images of a style that it saw, and of the one that the UNet never sees."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(BASE / "vae").float().eval()
    samples = load_captioned(f"{SHARDS}/{style}-00000.tar.gz").samples
    samples = samples[:: len(samples) // 60]
    pixels = torch.stack([torch.from_numpy(sample.pixels(64)) for sample in samples]).float() / 127.5 - 1
    with torch.no_grad():
        latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in pixels.split(64)])
        decoded = torch.cat([vae.decode(batch).sample for batch in latents.split(64)])
    assert psnr(decoded, pixels).mean() > 28
    assert latents.std() == pytest.approx(
        1, abs=0.15
    )  # one scale for all styles: what the UNet was trained on


def test_the_demo_in_miniature(tmp_path: Path) -> None:
    """fit and compare on the bundled model, a few steps each, through the commands that `make demo` runs."""
    run, out = tmp_path / "finetune", tmp_path / "compare"
    ordinary = load_captioned(f"{SHARDS}/noto-v1-00000.tar.gz").samples[:12]
    files = {f"{sample.id}.{kind}": part for sample in ordinary
             for kind, part in (("webp", sample.image), ("txt", sample.caption.encode()))}  # fmt: skip
    write_tar(tmp_path / "ordinary.tar", files)
    assert (
        train.__main__.main(
            ["fit", "--config", "configs/train/demo.yaml", "--out", str(run),
             "--data.cache", str(tmp_path / "cache"), "--data.limit", "6",
             "--data.ordinary", f"[{tmp_path}/ordinary.tar]", "--data.batch_size", "8",
             "--model.warmup_steps", "1", "--trainer.max_steps", "3", "--monitor.num_inference_steps", "3",
             "--data.exposure.copies", "2"]  # three steps of eight show each image twice
        )
        == 0
    )  # fmt: skip
    assert (
        infer.__main__.main(
            ["compare", "--config", "configs/infer/demo.yaml", "--out", str(out), "--run", str(run),
             "--model.num_inference_steps", "6", "--cache", str(out / "cache")]
        )
        == 0
    )  # fmt: skip
    table = pd.read_parquet(out / "comparison.parquet").set_index("mitigation")
    assert list(table.index) == [
        "none",
        "emoji/stp",
        "emoji/og_stp",
        "dtp",
        "emoji/og_dtp",
        "emoji/detour_base",
        "base_model",
    ]
    assert (table["images"] == 6).all()
    assert table["nfe_mean"]["none"] == 12 and table["nfe_mean"]["emoji/stp"] < 12
    assert all(
        prompt.startswith(HELD_OUT) for prompt in pd.read_parquet(out / "none/samples.parquet")["prompt_id"]
    )
    assert len(Page(out / "report.html").strips) == 6
