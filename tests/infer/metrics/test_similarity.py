"""The weight-free descriptor against numpy, and the search against brute force and faiss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from infer.metrics.similarity import Matches, embed_all, match, pixel_descriptor

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(seed: int, side: int = 32, low: int = 50, high: int = 150) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(low, high, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def brighter(image: Image.Image, shift: int) -> Image.Image:
    return Image.fromarray(np.asarray(image) + np.uint8(shift))


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def test_the_pixel_descriptor_is_a_correlation() -> None:
    """1 with itself, brighter or larger; else what numpy says."""
    images = [noise(0), noise(1), brighter(noise(0), 40), noise(0).resize((64, 64), Image.Resampling.NEAREST)]
    similarity = pixel_descriptor(images) @ pixel_descriptor(images).T
    expected = np.corrcoef(
        [np.asarray(image.resize((32, 32), Image.Resampling.BOX)).ravel() for image in images]
    )
    assert np.allclose(similarity, expected, atol=1e-5)
    assert np.allclose(similarity[0, [0, 2, 3]], 1, atol=1e-5)
    assert abs(similarity[0, 1]) < 0.1


def test_batches_do_not_change_embeddings(capsys: pytest.CaptureFixture) -> None:
    """A bar shows only where it has a label."""
    images = [noise(seed) for seed in range(5)]
    assert torch.equal(embed_all(iter(images), pixel_descriptor, 2), pixel_descriptor(images))
    assert capsys.readouterr().err == ""
    embed_all(images, pixel_descriptor, 2, "embed", total=5)
    assert "embed: 100%" in capsys.readouterr().err


def by_hand(images: torch.Tensor, training: torch.Tensor, own: list[list[int]]) -> Matches:
    cosines = images.double() @ training.double().T
    best = [
        row[places].max() if places else torch.tensor(torch.nan).double()
        for row, places in zip(cosines, own, strict=True)
    ]
    return Matches(torch.stack(best).float(), cosines.amax(1).float(), cosines.argmax(1))


@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 2), (2, 5), (100, 100)])
def test_matches_are_those_of_brute_force(rows: int, columns: int) -> None:
    """One, several or none of the training images are an image's own."""
    images, training = unit(7, 6, 0), unit(11, 6, 1)
    own = [[3], [], [0, 10, 5], [3], [], [0, 10, 5], list(range(11))]
    found, expected = match(images, training, own, rows, columns), by_hand(images, training, own)
    assert torch.allclose(found.own, expected.own, atol=1e-6, equal_nan=True)
    assert torch.allclose(found.top, expected.top, atol=1e-6)
    assert found.top_index.tolist() == expected.top_index.tolist()
    assert len(set(found.top_index.tolist())) > 3
    assert float(found.own[6]) == pytest.approx(float(found.top[6]), abs=1e-6)


def test_of_equally_good_matches_the_first_is_taken() -> None:
    """Whether they come in one block of training images or in several."""
    training = torch.eye(4)[[3, 0, 1, 0, 2, 1, 0, 2]]
    for columns in (1, 2, 3, 8):
        found = match(torch.eye(4), training, [[]] * 4, columns=columns)
        assert found.top_index.tolist() == [1, 2, 4, 0] and found.top.tolist() == [1.0] * 4


def test_all_similarities_may_be_negative() -> None:
    found = match(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [-0.6, 0.8]]), [[0]], columns=1)
    assert found.top.tolist() == pytest.approx([-0.6]) and found.top_index.tolist() == [1]
    assert found.own.tolist() == [-1]


def test_an_image_whose_embedding_is_not_finite_matches_nothing() -> None:
    images = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]])
    found = match(images, torch.eye(2), [[1], [1]])
    assert found.top[0] == 1 and found.top[1].isnan() and found.own[1].isnan()


def test_matches_are_those_of_faiss() -> None:
    """The exact inner-product index, over more than one block both ways."""
    faiss = pytest.importorskip("faiss", reason="pip install faiss-cpu")
    images, training = unit(1100, 32, 2), unit(20_000, 32, 3)
    index = faiss.IndexFlatIP(32)
    index.add(training.numpy())
    values, places = index.search(images.numpy(), 1)
    found = match(images, training, [[]] * len(images))
    assert np.allclose(found.top, values[:, 0], atol=1e-6)
    assert found.top_index.tolist() == places[:, 0].tolist()
    assert (found.top_index >= 16384).any() and (found.top_index < 16384).any()


def test_the_search_holds_one_block_of_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the sizes that were asked for, whatever the sets' are."""
    shapes, product = [], torch.Tensor.__matmul__

    def watched(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        out = product(left, right)
        shapes.append(tuple(out.shape))
        return out

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    match(unit(50, 4, 0), unit(90, 4, 1), [[]] * 50, rows=20, columns=40)
    assert set(shapes) == {(20, 40), (20, 10), (10, 40), (10, 10)} and len(shapes) == 9
