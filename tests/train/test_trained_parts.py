"""`python -m train fit` of the text encoder and of LoRA layers: what is trained, kept and exported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from infer.denoising.noise import sample_seed
from infer.models.lora import LORA_FILE
from infer.models.pipeline import load_pipeline
from tests.infer.models.model_files import assert_equal, failure, weights
from tests.train import fits
from tests.train.fits import ACCUMULATED, BATCH, STEPS, assert_same_run, full, interrupt, spied, spy, unet
from train.__main__ import main
from train.base_model.unet import BaseTraining

world = fits.world  # a fixture
RANK, ALPHA = 2, 8
TEXT = "text_encoder."  # begins the text encoder's names in a checkpoint
KINDS = {
    "text": {"model__train_text_encoder": "true"},
    "both": {"model__train_text_encoder": "true", "model__lora_rank": RANK, "model__lora_alpha": ALPHA},
    "8bit": {"model__optimizer": "adamw8bit"},
}
Run = Callable[[str], Path]


def parts(world: Path, out: Path, kind: str, **settings) -> list[str]:
    return full(world, out, model__lr=2e-2, **(KINDS[kind] | settings))


@pytest.fixture(scope="module")
def run(world: Path) -> Run:
    """Run folder of a kind's fit, never interrupted; `world/spied-<kind>` is what the UNet saw."""
    done: dict[str, Path] = {}

    def fitted(kind: str) -> Path:
        if kind not in done:
            done[kind] = world / kind
            callbacks = [spy(world / f"spied-{kind}")]
            assert main(parts(world, done[kind], kind, trainer__callbacks=callbacks)) == 0
        return done[kind]

    return fitted


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def stock(folder: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_encoder(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "text_encoder/model.safetensors")


def watched(run: Path) -> list[str]:
    """Ids on the sheet, from left to right."""
    rows = pd.read_parquet(run / "samples/similarity.parquet")
    return rows["id"][rows["step"] == STEPS].tolist()


def last_sheet(run: Path) -> list[np.ndarray]:
    """The generations on it, each pixel once."""
    sheet = np.asarray(Image.open(run / f"samples/step-{STEPS:06d}.png")).astype(int)
    return [sheet[48:96:3, left : left + 48 : 3] for left in (0, 48)]


def generated(pipe: StableDiffusionPipeline, run: Path) -> list[np.ndarray]:
    """The images of the watched captions, with the monitor's options."""
    captions = pd.read_parquet(run / "exposures.parquet").set_index("id")["caption"]
    options = {"guidance_scale": 3.0, "num_inference_steps": 2}
    images = []
    for name in watched(run):
        generator = torch.Generator().manual_seed(sample_seed(0, name, 0))
        images.append(np.asarray(pipe(captions[name], generator=generator, **options).images[0]).astype(int))
    return images


def apart(ours: list[np.ndarray], theirs: list[np.ndarray]) -> int:
    """Largest difference of a pixel, of 255."""
    return max(abs(one - other).max() for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", ["text", "both"])
def test_stock_diffusers_makes_the_images_of_the_last_sheet(kind: str, run: Run, world: Path) -> None:
    """From the export, which is what the monitor measured, text encoder included; not from the base."""
    sheet = last_sheet(run(kind))
    assert apart(generated(stock(run(kind) / "pipeline"), run(kind)), sheet) <= 1
    assert apart(generated(stock(world / "model"), run(kind)), sheet) > 3


@pytest.mark.parametrize("kind", ["text", "both", "8bit"])
def test_only_the_trained_parts_have_changed(kind: str, run: Run, world: Path) -> None:
    pipe, base = load_pipeline(str(run(kind) / "pipeline")), load_pipeline(str(world / "model"))
    before, after = weights(base), weights(pipe)
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    attention = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    text_attention = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight")
    if kind == "both":
        ends = {"unet": attention, "text_encoder": text_attention}
        assert changed == {key for key in before if key.endswith(ends.get(key.split(".")[0], "none"))}
    else:
        trained = ("unet.", "text_encoder.") if kind == "text" else ("unet.",)
        assert all(key.startswith(trained) for key in changed)
        for part in trained:
            share = np.mean([key in changed for key in before if key.startswith(part)])
            assert share > 0.9, part


@pytest.mark.parametrize("kind", ["text", "both"])
def test_captions_are_encoded_by_the_encoder_in_training(kind: str, run: Run, world: Path) -> None:
    """Though the latents come from the cache; a dropped caption is what the encoder makes of none by then."""
    cut = world / f"cut-{kind}"
    interrupt(parts(world, cut, kind), 5)
    about = checkpoint(cut)  # of step 4: these weights gave the batches of the next
    assert about["global_step"] == 4
    batches = spied(run(kind) and world / f"spied-{kind}")
    captions = pd.read_parquet(run(kind) / "exposures.parquet")["caption"]
    state, pipe = about["state_dict"], stock(world / "model")
    own = {key.removeprefix(TEXT): value for key, value in state.items() if key.startswith(TEXT)}
    if kind == "text":
        pipe.text_encoder.load_state_dict(own)
    else:
        with torch.no_grad():
            for name, down in own.items():
                if "lora_A" in name:
                    layer = pipe.text_encoder.get_submodule(name.removesuffix(".lora_A.default.weight"))
                    layer.weight += ALPHA / RANK * own[name.replace("lora_A", "lora_B")] @ down
    dropped = 0
    for batch in batches[4 * ACCUMULATED : 5 * ACCUMULATED]:
        texts = captions[batch["index"].tolist()].tolist()
        with torch.no_grad():
            expected, none = (pipe.encode_prompt(each, "cpu", 1, False)[0] for each in (texts, ""))
        for row, embedding in enumerate(batch["embedding"]):
            if (embedding - none[0]).abs().max() < 1e-4:
                dropped += 1
            else:
                torch.testing.assert_close(embedding, expected[row], atol=1e-4, rtol=1e-4)
    assert 0 < dropped < ACCUMULATED * BATCH
    before = stock(world / "model").encode_prompt("", "cpu", 1, False)[0]
    assert (before - none).abs().max() > 1e-2


def test_the_text_encoder_is_averaged(run: Run) -> None:
    """The export holds the average, the checkpoint the weights as they are."""
    about = checkpoint(run("text"))
    exported, state = text_encoder(run("text") / "pipeline"), about["state_dict"]
    average = dict(zip(state, about["callbacks"]["EMA"]["average"], strict=True))
    assert {key for key in state if key.startswith(TEXT)} == {TEXT + key for key in exported}
    for key, value in exported.items():
        assert torch.equal(value, average[TEXT + key])
    assert any(not torch.equal(value, state[TEXT + key]) for key, value in exported.items())


def test_a_checkpoint_holds_the_adapters_only(run: Run) -> None:
    """Weights, averages and moments of each; and is smaller than the UNet."""
    path = run("both") / "checkpoints/last.ckpt"
    about = checkpoint(run("both"))
    names = set(about["state_dict"])
    assert all("lora_" in name for name in names)
    assert any(name.startswith(TEXT) for name in names)
    numbers = sum(value.numel() for value in about["state_dict"].values())
    assert sum(value.numel() for value in about["callbacks"]["EMA"]["average"]) == numbers
    assert len(about["optimizer_states"][0]["state"]) == len(names)
    whole = sum(value.numel() for value in unet(run("both") / "pipeline").values())
    assert numbers < 0.05 * whole and path.stat().st_size < 4 * whole


def test_the_export_is_the_base_with_the_averaged_adapters(run: Run, world: Path) -> None:
    """W + alpha / rank B A by hand, from the average that the checkpoint keeps; and so is `pipeline/lora`."""
    about = checkpoint(run("both"))
    average = dict(zip(about["state_dict"], about["callbacks"]["EMA"]["average"], strict=True))
    expected = weights(load_pipeline(str(world / "model")))
    for name, down in average.items():
        if "lora_A" in name:
            up = average[name.replace("lora_A", "lora_B")]
            assert up.abs().max() > 0
            part = "text_encoder" if name.startswith(TEXT) else "unet"
            key = f"{part}.{name.split('.', 1)[1].removesuffix('.lora_A.default.weight')}.weight"
            expected[key] = expected[key] + ALPHA / RANK * up @ down
    assert_equal(weights(load_pipeline(str(run("both") / "pipeline"))), expected, rtol=1e-5, atol=1e-6)
    raw = any(not torch.equal(value, average[name]) for name, value in about["state_dict"].items())
    assert raw

    base = stock(world / "model")
    base.load_lora_weights(run("both") / "pipeline/lora")
    assert apart(generated(base, run("both")), last_sheet(run("both"))) <= 1
    loaded = load_pipeline(str(world / "model"), lora=str(run("both") / "pipeline/lora"))
    assert_equal(weights(loaded), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["both", "8bit"])
def test_an_interrupted_run_ends_as_if_it_was_not(kind: str, run: Run, world: Path) -> None:
    """In step 6, a step after the checkpoint, then the same command again."""
    out = world / f"cut-{kind}"
    if not out.exists():
        interrupt(parts(world, out, kind), 5)
    assert not (out / "pipeline").exists()
    assert main(parts(world, out, kind)) == 0
    assert_same_run(run(kind), out)
    ours, theirs = (weights(load_pipeline(str(each / "pipeline"))) for each in (out, run(kind)))
    assert_equal(ours, theirs, rtol=0, atol=1e-5)
    if kind == "both":
        files = [load_file(each / "pipeline/lora" / LORA_FILE) for each in (out, run(kind))]
        assert_equal(*files, rtol=0, atol=1e-5)


def test_moments_of_8_bits_are_kept(run: Run) -> None:
    """In the checkpoint, of tensors of 4096 entries or more."""
    about = checkpoint(run("8bit"))
    states = about["optimizer_states"][0]["state"].values()
    kinds = [state["__bnb_optimizer_quant_state__"]["state1"].dtype for state in states]
    large = [value.numel() >= 4096 for value in about["state_dict"].values()]
    assert [kind == torch.uint8 for kind in kinds] == large and any(large)


def test_a_base_model_has_no_lora() -> None:
    failure(ValueError, "a base model is untrained", BaseTraining, "vae", "clip", {}, {}, lora_rank=2)
