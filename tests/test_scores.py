"""The measures, against numpy, brute force, and models that say what they were shown."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from infer.alignment import ClipScore
from infer.score import summarize
from infer.similarity import match, pixel_descriptor, sscd_descriptor
from tests.conftest import CAPTIONS

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(seed: int, side: int = 32, low: int = 50, high: int = 150) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(low, high, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def brighter(image: Image.Image, shift: int) -> Image.Image:
    return Image.fromarray(np.asarray(image) + np.uint8(shift))


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


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_matches_are_those_of_brute_force(chunk: int) -> None:
    random = torch.Generator().manual_seed(0)
    images, training = (F.normalize(torch.randn(n, 6, generator=random)) for n in (7, 5))
    own = [3, None, 0, 1, None, 4, 4]
    found = match(images, training, own, chunk)
    for row, image in enumerate(images):
        similarities = [float(image @ other) for other in training]
        assert found.top[row] == pytest.approx(max(similarities), abs=1e-6)
        assert found.top_index[row] == similarities.index(max(similarities))
        assert found.own[row] == pytest.approx(
            np.nan if own[row] is None else similarities[own[row]], abs=1e-6, nan_ok=True
        )


# SSCD: models that give back the mean colour that they see, and TorchScript's also the size


class Seen(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = torch.tensor([x.shape[2] / 100.0, x.shape[3] / 100.0]).repeat(x.shape[0], 1)
        return torch.cat([x.mean([2, 3]), size], 1)


def onnx_bytes() -> bytes:
    """An ONNX model, (N, 3, 320, 320) -> (N, 3) means, in protobuf by hand."""

    def number(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + number(value // 128)

    def field(key: int, value: int | str | bytes) -> bytes:
        if isinstance(value, int):
            return number(key * 8) + number(value)
        value = value.encode() if isinstance(value, str) else value
        return number(key * 8 + 2) + number(len(value)) + value

    def tensor(name: str, *shape: int | str) -> bytes:
        sides = b"".join(field(1, field(1 if isinstance(n, int) else 2, n)) for n in shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, sides)))

    def node(kind: str, source: str, target: str) -> bytes:
        return field(1, field(1, source) + field(2, target) + field(4, kind))

    graph = node("GlobalAveragePool", "x", "pooled") + node("Flatten", "pooled", "y") + field(2, "means")
    graph += field(11, tensor("x", "n", 3, 320, 320)) + field(12, tensor("y", "n", 3))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))


COLORS = [(255, 0, 0), (10, 200, 30)]
MEANS = [
    [(v / 255 - m) / s for v, m, s in zip(color, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    for color in COLORS
]


def test_sscd_torchscript_sees_320_pixels_with_imagenet_statistics(tmp_path: Path) -> None:
    torch.jit.script(Seen()).save(tmp_path / "sscd.torchscript.pt")
    embed = sscd_descriptor(str(tmp_path / "sscd.torchscript.pt"))
    seen = embed([Image.new("RGB", (40, 20), color) for color in COLORS])
    assert torch.allclose(seen, F.normalize(torch.tensor([[*mean, 3.2, 3.2] for mean in MEANS])), atol=1e-5)


def test_sscd_onnx_sees_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install -e '.[sscd]'")
    (tmp_path / "sscd.onnx").write_bytes(onnx_bytes())
    seen = sscd_descriptor(str(tmp_path / "sscd.onnx"))([Image.new("RGB", (40, 20), c) for c in COLORS])
    assert torch.allclose(seen, F.normalize(torch.tensor(MEANS)), atol=1e-3)


@pytest.mark.parametrize(
    "name, content, error, message",
    [
        ("none.pt", None, FileNotFoundError, "no SSCD model"),
        ("sscd.bin", b"", ValueError, "only .pt"),
        ("sscd.pt", b"not a model", ValueError, "cannot read SSCD model"),
    ],
)
def test_a_copy_detector_that_cannot_be_used_is_an_error(
    tmp_path: Path, name: str, content: bytes | None, error: type, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        sscd_descriptor(str(tmp_path / name))


# CLIP


def test_clip_scores_are_the_cosines_of_transformers(tiny_clip: Path) -> None:
    """One a pair, in order, whatever the batches."""
    images, score = [noise(seed, 16, 0, 255) for seed in range(5)], ClipScore(str(tiny_clip))
    pixels = torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    tokens = score.tokenizer(CAPTIONS[:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = score.model(**tokens, pixel_values=pixels)
        expected = output.logits_per_image.diag() / score.model.logit_scale.exp()
    assert np.allclose(score(images, CAPTIONS[:5], batch_size=2), expected, atol=1e-5)
    assert expected.std() > 0.01


def test_a_prompt_longer_than_clip_reads_is_scored_by_what_it_reads(tiny_clip: Path) -> None:
    score, image = ClipScore(str(tiny_clip)), noise(0, 16)
    long = "red square blue circle green leaf old map"
    a, b = score([image, image], [f"{long} sun", f"{long} cup"])
    assert a == b


def test_a_missing_clip_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no CLIP model folder"):
        ClipScore(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="cannot load CLIP"):
        ClipScore(str(tmp_path))


# The table


def rows(**columns: list) -> pd.DataFrame:
    own = [0.0, 0.2, 0.6, 0.8]
    return pd.DataFrame(
        {"similarity_own": own, "similarity_top": [0.4, 0.6, 0.6, 0.9], "clip_score": [0.1, 0.2, 0.3, 0.6],
         "nfe": [10, 10, 20, 20], "seconds": [1.0, 1.0, 2.0, 4.0],
         "transition_timestep": [np.nan, 500.0, 700.0, 600.0], "failed_step": [np.nan] * 4} | columns
    )  # fmt: skip


def test_a_summary_is_what_one_gets_by_hand() -> None:
    """Percentiles interpolate: of four sorted values the 95th is at place 2.85."""
    assert summarize("dtp", rows()) == pytest.approx(
        {
            "mitigation": "dtp", "images": 4,
            "similarity_own_mean": 0.4, "similarity_own_std": 0.1**0.5, "similarity_own_p95": 0.77,
            "similarity_top_mean": 0.625, "similarity_top_p95": 0.855, "share_above_05": 0.5, "failed": 0,
            "clip_score_mean": 0.3, "fid": np.nan, "nfe_mean": 15.0, "seconds_per_image": 2.0,
            "fired_share": 0.75, "transition_timestep_median": 600.0,
        }, nan_ok=True,
    )  # fmt: skip


def test_a_summary_without_transitions_or_own_images() -> None:
    """They are missing in the table, not zero; SSCD has columns of its own."""
    nothing = [np.nan] * 4
    made = summarize(
        "none",
        rows(
            similarity_own=nothing, transition_timestep=nothing, sscd_own=[1.0, 1, 1, 0], sscd_top=[1.0] * 4
        ),
    )
    assert np.isnan(
        [made[key] for key in ("similarity_own_mean", "fired_share", "transition_timestep_median")]
    ).all()
    assert made["sscd_own_mean"] == 0.75 and made["sscd_top_mean"] == 1
