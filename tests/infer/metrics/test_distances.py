"""FID, KID, CMMD and diversity against numpy, scipy and scikit-learn, and what is said where they fail."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infer.metrics import distances
from infer.metrics.clip_score import ClipScore
from infer.metrics.distances import Extractor, Quality, cmmd, diversity, extractor, frechet, kernel_distance

pytestmark = pytest.mark.usefixtures("one_thread")
MEANS = Extractor(
    "means", lambda images: torch.from_numpy(np.stack([np.asarray(i).mean((0, 1)) for i in images])), "clip"
)


def gaussian(count: int, width: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """Correlated features."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(count, width)) @ np.random.default_rng(9).normal(size=(width, width))
    return torch.from_numpy(mixed * scale + shift)


def noise(seed: int, low: int = 0, high: int = 256) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(low, high, (16, 16, 3), np.uint8))


@pytest.mark.parametrize("count, shift, scale", [(60, 0.0, 1.0), (60, 0.7, 1.5), (200, -2.0, 0.3)])
def test_fid_is_that_of_its_formula(count: int, shift: float, scale: float) -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="pip install scipy")
    x, y = gaussian(count, 5, 0, shift, scale), gaussian(90, 5, 1)
    a, b = np.cov(x.T.numpy()), np.cov(y.T.numpy())
    root = linalg.sqrtm(a @ b).real
    expected = np.square(x.mean(0) - y.mean(0)).sum().item() + np.trace(a + b - 2 * root)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet(y, y) == pytest.approx(0, abs=1e-6) and frechet(y, x) == pytest.approx(expected, rel=1e-6)


def polynomial_mmd(x: np.ndarray, y: np.ndarray) -> float:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise", reason="pip install scikit-learn")

    def kernel(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return pairwise.polynomial_kernel(left, right, degree=3, gamma=1 / x.shape[1], coef0=1)

    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    among = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return among - 2 * kernel(x, y).mean()


def test_kid_is_the_unbiased_discrepancy_of_cubic_kernels() -> None:
    """Of sets that fit into one subset, all of both."""
    x, y = gaussian(40, 4, 0, 0.5), gaussian(40, 4, 1)
    assert kernel_distance(x, y) == pytest.approx(polynomial_mmd(x.numpy(), y.numpy()), rel=1e-9)


def test_kid_of_unequal_sets_is_a_mean_over_subsets_and_always_the_same() -> None:
    """Near that of whole sets; and it leaves torch's random numbers where they were."""
    x, y = gaussian(30, 4, 0, 0.5, 0.2), gaussian(300, 4, 1, 0.0, 0.2)
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    distance = kernel_distance(x, y)
    assert torch.equal(torch.rand(3), expected_next)
    assert distance == kernel_distance(x, y)
    assert distance == pytest.approx(polynomial_mmd(x.numpy(), y.numpy()), rel=0.05)
    assert distance != polynomial_mmd(x.numpy(), y[:30].numpy())


def test_cmmd_is_a_thousand_times_the_discrepancy_of_gaussian_kernels() -> None:
    """All pairs, of unit vectors, sigma 10; whatever the length of the vectors and the blocks."""
    x, y = gaussian(300, 6, 0, 0.5), gaussian(270, 6, 1)
    unit_x, unit_y = (z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True) for z in (x, y))

    def kernel(left: np.ndarray, right: np.ndarray) -> float:
        squared = np.square(left[:, None] - right[None]).sum(2)
        return np.exp(-squared / (2 * 10.0**2)).mean()

    expected = 1000 * (kernel(unit_x, unit_x) + kernel(unit_y, unit_y) - 2 * kernel(unit_x, unit_y))
    assert expected > 0.05
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-7)
    assert cmmd(x * 7, y.float()) == pytest.approx(expected, rel=1e-5)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    one = torch.tensor([[1.0, 0.0]])  # squared distance 4: 1000 (1 + 1 - 2 exp(-4 / 200))
    assert cmmd(one, -one) == pytest.approx(2000 * (1 - np.exp(-0.02)))


def test_quality_measures_like_the_functions() -> None:
    """With one reference for all sets, of which images without features are left out."""
    features, reference = (
        MEANS([noise(n, 60, 200) for n in range(30, 45)]),
        MEANS([noise(n) for n in range(20)]),
    )
    quality = Quality("clip", torch.cat([reference, torch.full((1, 3), torch.nan)]))
    expected = {
        "fid": frechet(features, reference),
        "kid": kernel_distance(features, reference),
        "cmmd": cmmd(features, reference),
    }
    assert quality.measure(features) == pytest.approx(expected, rel=1e-9)
    assert quality.notes == [] and all(value > 0 for value in expected.values())


def test_the_kernels_of_many_pairs_follow_from_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal sets have none."""
    x, y = gaussian(700, 16, 0), gaussian(900, 16, 1) + 0.3
    expected = cmmd(x, y)
    monkeypatch.setattr(distances, "KERNEL_PAIRS", 100**2)
    assert cmmd(x, y) == pytest.approx(expected, abs=1e-5) and expected > 0.05
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_few_images_are_noted_once() -> None:
    quality = Quality("clip", gaussian(50, 8, 0))
    for count in (8, 8, 9):
        assert np.isfinite([*quality.measure(gaussian(count, 8, 1)).values()]).all()
    assert quality.notes == ["FID over 8 images with 8 features is biased: compare within one table only."]


@pytest.mark.parametrize("generated, reference", [(0, 30), (1, 30), (30, 0), (30, 1)])
def test_fewer_than_two_images_have_no_distance(generated: int, reference: int) -> None:
    quality = Quality("clip", gaussian(reference, 3, 0))
    features = gaussian(generated, 3, 1) if generated else torch.empty(0, 1)
    assert np.isnan([*quality.measure(features).values()]).all()
    assert quality.notes == ["FID, KID and CMMD are undefined for fewer than 2 images."]


def test_equal_images_have_no_fid() -> None:
    """The others are defined."""
    equal = MEANS([noise(99)] * 10)
    quality = Quality("clip", MEANS([noise(n) for n in range(20)]))
    measured = quality.measure(equal)
    assert np.isnan(measured["fid"]) and measured["cmmd"] > 0 and np.isfinite(measured["kid"])
    assert quality.notes == ["FID is undefined for a set of images that are all equal."]
    assert np.isnan(Quality("clip", equal).measure(gaussian(30, 3, 0))["fid"])


def test_features_of_clip_are_its_projected_embeddings(tiny_clip: Path, clip: ClipScore) -> None:
    """Not of unit length; their identity is that of the weights, so that kept ones are no other model's."""
    images = [noise(n) for n in range(5)]
    features = extractor("clip", clip)(images)
    with torch.no_grad():
        pixels = torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
        expected = clip.towers.model.get_image_features(pixels).pooler_output
    assert torch.allclose(features, expected, atol=1e-5) and (features.norm(dim=1) - 1).abs().min() > 0.01
    again, other = ClipScore(str(tiny_clip)), ClipScore(str(tiny_clip))
    with torch.no_grad():
        other.towers.model.visual_projection.weight[0, 0] += 1
    identity = extractor("clip", clip).identity
    assert identity == extractor("clip", again).identity != extractor("clip", other).identity


def test_inception_without_torch_fidelity_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer.metrics.distances.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need torch-fidelity: pip install 'attraction-basin\[inception\]'"):
        extractor("inception")


class FakeInception(torch.nn.Module):
    """Maximum of each colour; as the real one, it takes bytes."""

    def __init__(self, name: str, features_list: list[str]):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.uint8 and x.shape[1:] == (3, 16, 16)
        return x.amax((2, 3)).float()


def test_inception_is_shown_bytes_and_has_no_cmmd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer.metrics.distances.find_spec", lambda name: True)
    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", FakeInception)
    images = [noise(n, 0, 50 + 10 * n) for n in range(8)]
    features = extractor("inception")(images)
    assert features.tolist() == [np.asarray(image).max((0, 1)).tolist() for image in images]
    quality = Quality("inception", features)
    measured = quality.measure(features[:6])
    assert measured["fid"] > 0 and np.isnan(measured["cmmd"])
    assert quality.notes == ["CMMD needs CLIP embeddings: there is none with other features."]


def test_inception_that_cannot_be_downloaded_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("infer.metrics.distances.find_spec", lambda name: True)
    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", offline)
    with pytest.raises(FileNotFoundError, match="unreachable.*weights-inception.*into .*/checkpoints"):
        extractor("inception")


def test_diversity_is_the_mean_over_prompts_of_pairs() -> None:
    """By loops; a prompt with one image does not count, and one with more images counts as the others."""
    features, ids = gaussian(9, 5, 0).float(), ["a", "b", "a", "c", "b", "a", "a", "d", "d"]
    means = []
    for key in "abd":
        group = [features[n].numpy() for n in range(9) if ids[n] == key]
        pairs = [(u, v) for i, u in enumerate(group) for v in group[i + 1 :]]
        means.append(np.mean([1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in pairs]))
    assert diversity(features, ids) == pytest.approx(np.mean(means), rel=1e-5)
    assert np.std(means) > 0.05


def test_diversity_of_equal_opposite_and_single_images() -> None:
    one = torch.tensor([1.0, 2.0])
    assert diversity(torch.stack([one, one * 3]), ["a", "a"]) == pytest.approx(0, abs=1e-12)
    assert diversity(torch.stack([one, -one]), ["a", "a"]) == pytest.approx(2)
    assert np.isnan(diversity(torch.stack([one, one]), ["a", "b"]))
    assert np.isnan(diversity(torch.empty(0, 2), []))
