"""The weight-free descriptor against numpy, and the search against brute force."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from infer.metrics.similarity import COPY_THRESHOLD, Matches, match, pixel_descriptor, similarity
from tests.pixels import local_correlation

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(seed: int, size: int = 32, low: int = 50, high: int = 150) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(low, high, (size, size, 3), np.uint8)
    return Image.fromarray(pixels)


def brighter(image: Image.Image, shift: int) -> Image.Image:
    return Image.fromarray(np.asarray(image) + np.uint8(shift))


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def on(background: tuple[int, int, int], corner: int) -> Image.Image:
    """An object on a plain background."""
    image = Image.new("RGB", (32, 32), background)
    image.paste(noise(5, 8), (corner, corner))
    return image


def test_the_pixel_descriptor_is_a_correlation() -> None:
    """1 with itself, brighter or larger; else what numpy says."""
    images = [noise(0), noise(1), brighter(noise(0), 40), noise(0).resize((64, 64), Image.Resampling.NEAREST)]
    correlations = pixel_descriptor(images) @ pixel_descriptor(images).T
    expected = [[local_correlation(one, other) for other in images] for one in images]
    assert np.allclose(correlations, expected, atol=1e-5)
    assert np.allclose(correlations[0, [0, 2, 3]], 1, atol=1e-5)
    assert abs(correlations[0, 1]) < 0.1


def test_an_object_counts_and_its_background_does_not() -> None:
    """The same object there: a copy on any background. Elsewhere: none, on the same background."""
    images = [on((120, 120, 120), 4), on((200, 150, 30), 4), on((120, 120, 120), 20)]
    first = pixel_descriptor(images)[0] @ pixel_descriptor(images).T
    assert first[1] > COPY_THRESHOLD and abs(first[2]) < 0.1


def by_hand(images: torch.Tensor, training: torch.Tensor, own: list[list[int]]) -> Matches:
    cosines = images.double() @ training.double().T
    best = [
        row[indices].max() if indices else torch.tensor(torch.nan).double()
        for row, indices in zip(cosines, own, strict=True)
    ]
    return Matches(torch.stack(best).float(), cosines.amax(1).float(), cosines.argmax(1))


@pytest.mark.parametrize("columns", [1, 2, 5, 100])
def test_matches_are_those_of_brute_force(columns: int) -> None:
    """One, several or none of the training images are an image's own; images may share a list of them."""
    images, training = unit(7, 6, 0), unit(11, 6, 1)
    shared = [0, 10, 5]
    own = [[3], [], shared, [3], [], shared, list(range(11))]
    matches, expected = match(images, training, own, columns), by_hand(images, training, own)
    assert torch.allclose(matches.own, expected.own, atol=1e-6, equal_nan=True)
    assert torch.allclose(matches.top, expected.top, atol=1e-6)
    assert matches.top_index.tolist() == expected.top_index.tolist()
    assert len(set(matches.top_index.tolist())) > 3
    assert float(matches.own[6]) == pytest.approx(float(matches.top[6]), abs=1e-6)


def test_of_equally_good_matches_the_first_is_taken() -> None:
    """Whether they come in one block of training images or in several."""
    training = torch.eye(4)[[3, 0, 1, 0, 2, 1, 0, 2]]
    for columns in (1, 2, 3, 8):
        matches = match(torch.eye(4), training, [[]] * 4, columns=columns)
        assert matches.top_index.tolist() == [1, 2, 4, 0] and matches.top.tolist() == [1.0] * 4


def test_an_embedding_of_nan_matches_nothing_and_all_cosines_may_be_negative() -> None:
    """Neither among the images nor among the training images."""
    images = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]])
    training = torch.tensor([[torch.nan, torch.nan], [-1.0, 0.0], [-0.6, 0.8]])
    for columns in (1, 3):
        matches = match(images, training, [[1], [1]], columns=columns)
        assert matches.top[0] == pytest.approx(-0.6) and matches.top_index[0] == 2 and matches.own[0] == -1
        assert matches.top[1].isnan() and matches.own[1].isnan()
    alone = match(images, training[:1], [[0], []])
    assert alone.top.isnan().all() and alone.own.isnan().all()


@pytest.mark.parametrize("color", ["black", "white", "red", (10, 200, 30)])
def test_a_constant_image_is_similar_to_nothing(color) -> None:
    """Nor one that is nearly so, as JPEG leaves it; a faint image has a similarity."""
    constant, nearly = Image.new("RGB", (64, 64), color), noise(3, 64, 100, 102)
    faint = Image.fromarray(100 + np.asarray(noise(0)) // 16)
    values = similarity(pixel_descriptor, [constant, nearly, faint, noise(0)], [noise(0)] * 3 + [constant])
    assert values.isnan().tolist() == [True, True, False, True] and values[2] > 0.9


def test_the_search_holds_one_block_of_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, product = [], torch.Tensor.__matmul__

    def watched(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple((out := product(left, right)).shape))
        return out

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    match(unit(20, 4, 0), unit(90, 4, 1), [[]] * 20, columns=40)
    assert shapes == [(20, 40), (20, 40), (20, 10)]
