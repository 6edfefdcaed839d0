"""Embeddings of training images that are kept: used again when all is the same, and only then."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from data.captioned import CaptionedImages, Sample
from infer.metrics.score import TrainingSet
from infer.metrics.similarity import Descriptor, pixel_descriptor
from infer.metrics.training_embeddings import TrainingEmbeddings

pytestmark = pytest.mark.usefixtures("one_thread")


def sample(key: str, seed: int) -> Sample:
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(data, "png")
    return Sample(key, data.getvalue(), f"caption of {key}")


SAMPLES = [sample(f"t{number}", number) for number in range(5)]


class Counting:
    """A descriptor of means that counts the images it was shown, and their sizes."""

    def __init__(self, identity: str = "means"):
        self.shown: list[tuple[int, int]] = []
        self.descriptor = Descriptor(identity, self.embed)

    def embed(self, images: list[Image.Image]) -> torch.Tensor:
        self.shown += [image.size for image in images]
        return torch.from_numpy(np.stack([np.asarray(image).mean((0, 1)) for image in images])).float()


def embed(
    cache: Path, samples: list[Sample] = SAMPLES, resolution: int = 8, identity: str = "means"
) -> tuple[torch.Tensor, int]:
    """The embeddings, and how many images were looked at for them."""
    counting = Counting(identity)
    made = TrainingEmbeddings(CaptionedImages(samples), resolution, cache).by(counting.descriptor)
    assert set(counting.shown) <= {(resolution, resolution)}
    return made, len(counting.shown)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "cache/embeddings"


def test_a_second_call_embeds_nothing(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, looked = embed(cache)
    assert looked == 5 and first.shape == (5, 3)
    again, looked = embed(cache)
    assert looked == 0 and torch.equal(again, first)
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"] and caplog.messages == []


def test_without_a_cache_nothing_is_written(tmp_path: Path) -> None:
    images = CaptionedImages(SAMPLES)
    made = TrainingEmbeddings(images, 8).by(pixel_descriptor)
    assert torch.equal(made, pixel_descriptor([sample.rgb(8) for sample in SAMPLES]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "means by another protocol"},
        {"resolution": 10},
        {"samples": [*SAMPLES[:4], sample("t4", 99)]},
        {"samples": [*SAMPLES[:4], replace(SAMPLES[4], id="t5")]},
        {"samples": SAMPLES[:4]},
        {"samples": SAMPLES[::-1]},
    ],
    ids=["protocol", "resolution", "one image", "one id", "fewer images", "order"],
)
def test_whatever_differs_is_embedded_anew(cache: Path, change: dict) -> None:
    """Next to the other, which is still of use."""
    first, _ = embed(cache)
    _, looked = embed(cache, **change)
    assert looked == len(change.get("samples", SAMPLES))
    again, looked = embed(cache)
    assert looked == 0 and torch.equal(again, first)


def test_another_caption_changes_nothing(cache: Path) -> None:
    embed(cache)
    assert embed(cache, samples=[replace(one, caption="other") for one in SAMPLES])[1] == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "not one at all"])
def test_a_broken_file_is_made_anew(cache: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = embed(cache)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    broken = {"cut": whole[:-7], "empty": b"", "flipped": flipped, "not one at all": b"nothing" * 9}
    path.write_bytes(broken[damage])
    again, looked = embed(cache)
    assert looked == 5 and torch.equal(again, first) and embed(cache)[1] == 0
    assert f"{path} is not used, the training images are embedded anew" in caplog.text


@pytest.mark.parametrize("key", ["descriptor", "resolution", "images", "images_sha256"])
def test_a_file_of_something_else_is_not_used(
    cache: Path, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Under the right name: what it says of itself decides."""
    first, _ = embed(cache)
    (path,) = cache.iterdir()
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file({"embeddings": first}, path, about | {key: "other"})
    again, looked = embed(cache)
    assert looked == 5 and torch.equal(again, first)
    assert f"{key} is other, not {about[key]}" in caplog.text


def test_a_cache_that_cannot_be_written_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    made, looked = embed(tmp_path / "file")
    assert looked == 5 and made.shape == (5, 3) and "are not kept" in caplog.text


def test_numbers_that_are_not_finite_are_an_error_and_not_kept(cache: Path) -> None:
    broken = Descriptor("broken", lambda images: torch.full((len(images), 2), torch.nan))
    with pytest.raises(ValueError, match="broken gives numbers that are not finite"):
        TrainingEmbeddings(CaptionedImages(SAMPLES), 8, cache).by(broken)
    assert not cache.exists()


def test_no_training_image_is_an_error(cache: Path) -> None:
    with pytest.raises(ValueError, match="no training image"):
        TrainingEmbeddings(CaptionedImages([]), 8, cache).by(pixel_descriptor)


def test_a_training_set_takes_all_its_measures_from_the_cache(
    cache: Path, capsys: pytest.CaptureFixture
) -> None:
    """A bar with the number of images shows while they are embedded."""
    for looked in (5, 0):
        a, b = Counting("a"), Counting("b")
        measures = {"similarity": a.descriptor, "sscd": b.descriptor}
        training = TrainingSet.embed(CaptionedImages(SAMPLES), 8, measures, cache)
        assert len(a.shown) == len(b.shown) == looked
        assert ("embed training images: 100%" in capsys.readouterr().err) == bool(looked)
        assert {name: tuple(vectors.shape) for name, (_, vectors) in training.measures.items()} == {
            "similarity": (5, 3),
            "sscd": (5, 3),
        }
