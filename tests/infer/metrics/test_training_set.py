"""Embeddings of training images that are kept: used again when all is the same, and only then."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.captioned import CaptionedImages, Sample
from infer.metrics.similarity import Descriptor, pixel_descriptor
from infer.metrics.training_set import TrainingSet

pytestmark = pytest.mark.usefixtures("one_thread")


def sample(key: str, seed: int) -> Sample:
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(data, "png")
    return Sample(key, data.getvalue(), f"caption of {key}")


SAMPLES = [sample(f"t{number}", number) for number in range(5)]


def embed(
    cache: Path, samples: list[Sample] = SAMPLES, resolution: int = 8, identity: str = "means"
) -> tuple[torch.Tensor, int]:
    """The embeddings, and how many images were embedded for them."""
    sizes: list[tuple[int, int]] = []

    def means(images: list[Image.Image]) -> torch.Tensor:
        sizes.extend(image.size for image in images)
        return torch.from_numpy(np.stack([np.asarray(image).mean((0, 1)) for image in images])).float()

    embeddings = TrainingSet(CaptionedImages(samples), resolution, {}, cache).embeddings(
        Descriptor(identity, means)
    )
    assert set(sizes) <= {(resolution, resolution)}
    return embeddings, len(sizes)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "cache/embeddings"


def test_a_second_call_embeds_nothing(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A caption is no part of an image."""
    first, embedded = embed(cache)
    assert embedded == 5 and first.shape == (5, 3)
    again, embedded = embed(cache, samples=[replace(one, caption="other") for one in SAMPLES])
    assert embedded == 0 and torch.equal(again, first)
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"] and caplog.messages == []


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
    assert embed(cache, **change)[1] == len(change.get("samples", SAMPLES))
    again, embedded = embed(cache)
    assert embedded == 0 and torch.equal(again, first)


@pytest.mark.parametrize("content", [None, b"", b"nothing" * 9], ids=["cut", "empty", "something else"])
def test_a_damaged_file_is_written_anew(
    cache: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = embed(cache)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-7] if content is None else content)
    again, embedded = embed(cache)
    assert embedded == 5 and torch.equal(again, first) and embed(cache)[1] == 0
    assert f"{path} is damaged" in caplog.text


def test_a_cache_that_cannot_be_written_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    embeddings, embedded = embed(tmp_path / "file")
    assert embedded == 5 and embeddings.shape == (5, 3) and "are not kept" in caplog.text


def test_a_damaged_training_image_is_named_and_matches_nothing(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: the embeddings are kept with their gap."""
    damaged = replace(SAMPLES[2], stored=SAMPLES[2].image[:200])
    for embedded in (4, 0):
        embeddings, count = embed(cache, samples=[*SAMPLES[:2], damaged, *SAMPLES[3:]])
        assert count == embedded and embeddings.isnan().any(1).tolist() == [False, False, True, False, False]
    (message,) = caplog.messages
    assert message.startswith("training image 't2' is left out of the search: ")


@pytest.mark.parametrize("samples", [SAMPLES, []], ids=["no finite number", "no image"])
def test_without_any_embedding_there_is_an_error_and_nothing_kept(cache: Path, samples: list[Sample]) -> None:
    broken = Descriptor("broken", lambda images: torch.full((len(images), 2), torch.nan))
    with pytest.raises(ValueError, match="broken gives no finite numbers for any training image"):
        TrainingSet(CaptionedImages(samples), 8, {"broken": broken}, cache)
    assert not cache.exists()


def test_without_a_cache_a_bar_shows_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    embeddings = TrainingSet(CaptionedImages(SAMPLES), 8, {"a": pixel_descriptor}).measures["a"][1]
    assert torch.equal(embeddings, pixel_descriptor([sample.rgb(8) for sample in SAMPLES]))
    assert list(tmp_path.iterdir()) == [] and "embed training images: 100%" in capsys.readouterr().err
