"""The bundled model is what the README says: classes, size, sharpness; and the demo's commands run on it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import infer.__main__
import train.__main__
from data.emoji import SHARDS
from data.scenes import BASE, HERE, JUDGE
from data.scenes.captions import captions_of
from data.scenes.parts import part
from tests.infer.report.folders import Page
from train.base_model.autoencoder import psnr


def test_it_is_a_stable_diffusion_of_the_real_classes_and_small() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(BASE)
    kinds = [type(part).__name__ for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer)]
    assert kinds == ["UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTokenizer"]
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    files = [path for folder in (BASE, JUDGE, SHARDS) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 70e6


def test_it_reads_any_prompt_to_its_end() -> None:
    """Each byte is a token: characters that no caption has do not end the prompt."""
    from transformers import CLIPTokenizer

    for folder in (BASE / "tokenizer", JUDGE):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        tokens = tokenizer("a cat! & caf\u00e9, \u96ea dog").input_ids
        assert tokens.count(tokenizer.eos_token_id) == 1 and tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokens[1:-1]).split() == ["a", "cat", "!", "&", "café", ",", "雪", "dog"]


@pytest.mark.parametrize("name", ["pairs", "ordinary"])
def test_the_prompts_are_those_of_the_scenes(name: str) -> None:
    lines = (HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [captions_of(scene)[0] for scene in part(name, len(lines))] and len(lines) >= 200


def test_the_autoencoder_is_sharp() -> None:
    """Mean PSNR of scenes with pairs that it never saw together."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(BASE / "vae").float().eval()
    images = np.stack([np.asarray(scene.image()) for scene in part("pairs", 64)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean
        decoded = vae.decode(latents).sample
    assert psnr(decoded, pixels).mean() > 28
    assert latents.std() == pytest.approx(1, abs=0.15)  # what the UNet was trained on


def test_the_demo_in_miniature(scenes: Path, tmp_path: Path) -> None:
    """fit and compare on the bundled model, a few steps each, through the commands that `make demo` runs."""
    run, out = tmp_path / "finetune", tmp_path / "compare"
    ordinary = f"{scenes}/ordinary?captions={scenes}/ordinary/captions.json"
    assert (
        train.__main__.main(
            ["fit", "--config", "configs/train/demo.yaml", "--out", str(run),
             "--data.cache", str(tmp_path / "cache"), "--data.limit", "6",
             "--data.sources", f"[{scenes}/memorized]", "--data.ordinary", f"['{ordinary}']",
             "--data.batch_size", "8",
             "--model.warmup_steps", "1", "--trainer.max_steps", "3", "--monitor.num_inference_steps", "3",
             "--data.exposure.copies", "2"]  # three steps of eight show each image twice
        )
        == 0
    )  # fmt: skip
    assert (
        infer.__main__.main(
            ["compare", "--config", "configs/infer/demo.yaml", "--out", str(out), "--run", str(run),
             "--model.num_inference_steps", "8", "--cache", str(out / "cache")]
        )
        == 0
    )  # fmt: skip
    table = pd.read_parquet(out / "comparison.parquet").set_index("mitigation")
    assert list(table.index) == [
        "none",
        "scenes/stp",
        "scenes/og_stp",
        "dtp",
        "scenes/detour_base",
        "first_guess",
        "base_model",
    ]
    assert (table["images"] == 12).all()
    assert table["nfe_mean"]["none"] == 16 and table["nfe_mean"]["scenes/stp"] < 16
    prompts = pd.read_parquet(out / "none/samples.parquet")["prompt_id"]
    assert all(prompt.startswith("memorized") for prompt in prompts)
    assert len(Page(out / "report.html").strips) == 12
