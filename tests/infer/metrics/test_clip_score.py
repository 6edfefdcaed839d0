"""CLIP scores against transformers and a stand-in for open_clip."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from infer.metrics.clip_score import ClipScore, check_clip
from tests.conftest import CAPTIONS

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8))


def test_clip_scores_are_the_cosines_of_transformers(tiny_clip: Path, clip: ClipScore) -> None:
    """One a pair, in order, whatever the batches."""
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(tiny_clip), CLIPTokenizer.from_pretrained(tiny_clip)
    images = [noise(seed) for seed in range(5)]
    pixels = torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    tokens = tokenizer(CAPTIONS[:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, pixel_values=pixels)
        expected = output.logits_per_image.diag() / model.logit_scale.exp()
        features = model.get_image_features(pixels).pooler_output
    assert np.allclose(clip.cosines(clip.image_features(images, 2), CAPTIONS[:5], 2), expected, atol=1e-5)
    assert expected.std() > 0.01
    assert torch.allclose(clip.image_features(images, batch_size=2), features, atol=1e-5)


def test_a_prompt_longer_than_clip_reads_is_scored_by_what_it_reads(clip: ClipScore) -> None:
    long = "red square blue circle green leaf old map"
    features = clip.image_features([noise(0), noise(0)])
    a, b = clip.cosines(features, [f"{long} sun", f"{long} cup"])
    assert a == b
    assert clip.towers.too_long(long) and not clip.towers.too_long("red square")


def test_a_missing_clip_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no CLIP model folder"):
        ClipScore(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has no .safetensors"):
        ClipScore(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="cannot load CLIP"):
        ClipScore(str(tmp_path))


def test_a_clip_that_is_a_pickle_is_not_loaded(tiny_clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="clip has no .safetensors, only pytorch_model.bin, a pickle"):
        ClipScore(str(folder))


class FakeOpenClip(torch.nn.Module):
    """Mean colour of an image, and three numbers of a text."""

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float()


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The package's functions; returns the arguments of their calls."""
    calls: list[Any] = []

    def create_model_and_transforms(name: str, pretrained: str, device: str) -> tuple:
        calls.append((name, pretrained, device))
        if name == "None":
            raise RuntimeError("Model config for 'None' not found")
        prepare = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # noqa: E731
        return FakeOpenClip().train(), None, prepare

    def get_tokenizer(name: str) -> Any:
        calls.append(name)
        return lambda texts: torch.tensor([[len(text), text.count("e"), 3] for text in texts])

    module = SimpleNamespace(
        create_model_and_transforms=create_model_and_transforms,
        get_tokenizer=get_tokenizer,
        __spec__=SimpleNamespace(),
    )
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return calls


def test_open_clip_models_are_scored_alike(open_clip: list[Any]) -> None:
    """By name and weights; a file of weights has its own path."""
    clip, images = ClipScore("open_clip:ViT-g-14/laion2b_s12b_b42k"), [noise(seed) for seed in range(3)]
    assert open_clip == [("ViT-g-14", "laion2b_s12b_b42k", "cpu"), "ViT-g-14"]
    assert not clip.towers.model.training
    expected = []
    for image, text in zip(images, CAPTIONS[:3], strict=True):
        a, b = np.asarray(image).mean((0, 1)) / 255, np.array([len(text), text.count("e"), 3])
        expected.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert np.allclose(clip.cosines(clip.image_features(images, 2), CAPTIONS[:3], 2), expected, atol=1e-5)
    assert np.allclose(clip.image_features(images), [np.asarray(i).mean((0, 1)) / 255 for i in images])
    ClipScore("open_clip:ViT-H-14//models/h14.bin")
    assert open_clip[2] == ("ViT-H-14", "/models/h14.bin", "cpu")
    with pytest.raises(FileNotFoundError, match="cannot load CLIP 'open_clip:None/x': Model config"):
        ClipScore("open_clip:None/x")


def test_open_clip_without_its_package_or_weights_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer.metrics.clip_score.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"open_clip_torch: pip install 'attraction-basin\[open_clip\]'"):
        check_clip("open_clip:ViT-H-14/laion2b_s32b_b79k")
    for name in ("open_clip:ViT-H-14", "open_clip:/laion2b", "open_clip:"):
        with pytest.raises(ValueError, match="give open_clip:MODEL/WEIGHTS"):
            check_clip(name)


def test_a_clip_has_one_fingerprint_in_all_processes(clip: ClipScore) -> None:
    """Preparations may hold functions, which are shown with their addresses."""

    def fingerprint(preparation) -> str:
        twin = object.__new__(ClipScore)
        twin.towers = clip.towers._replace(preparation=preparation)
        return twin.fingerprint

    functions = [eval("lambda image: image") for _ in range(2)]
    assert str(functions[0]) != str(functions[1])
    assert fingerprint([functions[0]]) == fingerprint([functions[1]]) != fingerprint(["resize 224"])
