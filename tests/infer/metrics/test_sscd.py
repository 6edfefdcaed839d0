"""SSCD: its protocols, by models that give back what they are shown, and where its file comes from."""

import hashlib
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from infer.metrics.sscd import SSCD_MODELS, check_sscd, sscd_descriptor, sscd_file
from infer.models.download import download_path, fetch

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5] * 3, [0.5] * 3


class Shown(torch.nn.Module):
    """All pixels, and a number that undoes the scaling to unit length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.flatten(1), torch.full((x.shape[0], 1), 100.0)], 1)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sscd") / "sscd.torchscript.pt"
    torch.jit.script(Shown()).save(path)
    return path


def picture(width: int, height: int) -> Image.Image:
    """Waves, of which a fraction of a pixel is seen: red along the columns, green along the rows."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = np.stack([np.sin(x / 3 + x**2 / 5e4), np.sin(y / 3 + y**2 / 5e4), np.cos((x + y) / 9)], 2)
    return Image.fromarray((127.5 + 100 * waves).astype(np.uint8))


@pytest.mark.parametrize(
    "protocol, size, resized, left_top, resolution, statistics",
    [
        ("dcr", (402, 300), (343, 256), (60, 16), 224, HALF),  # 343.04 columns; 59.5 to even
        ("dcr", (450, 1160), (256, 659), (16, 218), 224, HALF),  # 659.9 rows; 217.5
        ("skew320", (400, 300), (320, 320), (0, 0), 320, IMAGENET),
        ("resize288", (90, 231), (288, 288), (0, 0), 288, IMAGENET),
    ],
)  # fmt: skip
def test_a_model_sees_what_its_protocol_says(
    shown: Path, protocol: str, size: tuple[int, int], resized: tuple[int, int], left_top: tuple[int, int],
    resolution: int, statistics: tuple[list[float], list[float]],
) -> None:  # fmt: skip
    """Resized by torch's antialiased interpolation, cropped at a corner worked out by hand."""
    vector = sscd_descriptor(str(shown), protocol)([picture(*size)])
    assert vector.shape == (1, 3 * resolution**2 + 1) and vector.norm() == pytest.approx(1, abs=1e-4)
    seen = (vector[0, :-1] / vector[0, -1] * 100).view(3, resolution, resolution)

    pixels = torch.from_numpy(np.array(picture(*size))).permute(2, 0, 1)[None] / 255
    whole = F.interpolate(pixels, resized[::-1], mode="bilinear", antialias=True, align_corners=False)[0]
    left, top = left_top
    expected = whole[:, top : top + resolution, left : left + resolution]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    # to the rounding to bytes: a crop that is a pixel off is further away than that on average
    assert ((seen * std + mean) - expected).abs().max() < 1.1 / 255
    assert ((seen * std + mean) - expected).mean().abs() < 0.1 / 255
    assert (seen - (expected - mean) / std).abs().max() < 6 / 255


def test_models_and_protocols_have_identities_of_their_own(shown: Path, tmp_path: Path) -> None:
    """A copy of a file is the same model; another content is another."""
    copy, other = tmp_path / "copy.pt", tmp_path / "other.pt"
    copy.write_bytes(shown.read_bytes())
    torch.jit.script(torch.nn.Flatten()).save(other)
    identities = [
        sscd_descriptor(str(path), protocol).identity
        for path, protocol in [(shown, "dcr"), (copy, "dcr"), (shown, "skew320"), (other, "dcr")]
    ]
    assert identities[0] == identities[1] and len(set(identities)) == 3


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
        sizes = b"".join(field(1, field(1 if isinstance(n, int) else 2, n)) for n in shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, sizes)))

    def node(kind: str, source: str, target: str) -> bytes:
        return field(1, field(1, source) + field(2, target) + field(4, kind))

    graph = node("GlobalAveragePool", "x", "pooled") + node("Flatten", "pooled", "y") + field(2, "means")
    graph += field(11, tensor("x", "n", 3, 320, 320)) + field(12, tensor("y", "n", 3))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))


def test_onnx_sees_the_same(tmp_path: Path) -> None:
    """A model for one size of images takes no protocol of another."""
    pytest.importorskip("onnxruntime", reason="pip install -e '.[sscd]'")
    (tmp_path / "sscd.onnx").write_bytes(onnx_bytes())
    colors = [(255, 0, 0), (10, 200, 30)]
    means = [[(v / 510 - m) / s for v, m, s in zip(color, *IMAGENET, strict=True)] for color in colors]
    images = [Image.new("RGB", (40, 20)) for _ in colors]
    for image, color in zip(images, colors, strict=True):
        image.paste(color, (0, 0, 20, 20))  # half of it
    seen = sscd_descriptor(str(tmp_path / "sscd.onnx"))(images)
    assert torch.allclose(seen, F.normalize(torch.tensor(means)), atol=2e-3)
    with pytest.raises(ValueError, match=r"takes images of \[320, 320\], and the protocol gives 224x224"):
        sscd_descriptor(str(tmp_path / "sscd.onnx"), "dcr")


@pytest.mark.parametrize(
    "name, content, error, message",
    [
        ("none.pt", None, FileNotFoundError, "no SSCD model .*disc_mixup, disc_large"),
        ("sscd.bin", b"", ValueError, "give a .pt"),
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


def test_an_image_of_one_colour_has_no_similarity(shown: Path) -> None:
    embeddings = sscd_descriptor(str(shown))([Image.new("RGB", (64, 64), "red"), picture(64, 64)])
    assert embeddings.isnan().all(1).tolist() == [True, False] and embeddings[1].isfinite().all()


def test_a_local_file_must_have_its_checksum(shown: Path) -> None:
    right = hashlib.sha256(shown.read_bytes()).hexdigest()
    for sha256 in (right, right.upper(), None):
        check_sscd(str(shown), sha256)
        assert sscd_file(str(shown), sha256) == shown
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    for use in (check_sscd, partial(sscd_descriptor, sha256=wrong)):
        arguments = [str(shown), wrong] if use is check_sscd else [str(shown)]
        with pytest.raises(ValueError, match=f"has the sha256 {right}, not {wrong}"):
            use(*arguments)
    with pytest.raises(ValueError, match="64 hexadecimal digits: not 'abc'"):
        check_sscd(str(shown), "abc")


# Downloads


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """torch.hub's folder, empty."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub"
    torch.hub.set_dir(before)


@pytest.fixture
def served(shown: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of the model's folder, and the paths that were requested."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *values: object) -> None:
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(shown.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_url_is_downloaded_once(hub: Path, served: tuple[str, list[str]], shown: Path) -> None:
    address, requests = served
    url, sha256 = f"{address}/{shown.name}", hashlib.sha256(shown.read_bytes()).hexdigest()
    check_sscd(url, sha256)
    assert requests == []  # a check downloads nothing
    vector = sscd_descriptor(url, "dcr", sha256)([picture(30, 20)])
    assert torch.equal(vector, sscd_descriptor(str(shown), "dcr")([picture(30, 20)]))
    (kept,) = files(hub)
    assert kept.read_bytes() == shown.read_bytes() and kept == download_path(url)
    assert sscd_file(url) == kept and len(requests) == 1
    with pytest.raises(ValueError, match="invalid hash value"):
        fetch(f"{url}?again", "0" * 64)
    assert files(hub) == [kept]  # a download with another checksum is not
    kept.write_bytes(b"changed since")
    with pytest.raises(ValueError, match="another file"):
        sscd_file(url, sha256)
    with pytest.raises(ValueError, match=f"if it is broken, delete {re.escape(str(kept))}"):
        sscd_descriptor(url)


def test_metas_models_come_from_metas_address(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network one line says from where and where to put the file, which then is taken."""
    monkeypatch.setattr("torch.hub.urlopen", lambda request: offline())
    for name in ("disc_mixup", "disc_large"):
        check_sscd(name)
        url = f"https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_{name}.torchscript.pt"
        assert SSCD_MODELS[name] == url
        with pytest.raises(FileNotFoundError, match=f"cannot download {url} .*unreachable.*") as caught:
            sscd_file(name)
        assert f"put the file at {download_path(url)}" in str(caught.value) and "\n" not in str(caught.value)
        download_path(url).parent.mkdir(parents=True, exist_ok=True)
        download_path(url).write_bytes(b"put there")
        assert sscd_file(name).read_bytes() == b"put there"


def offline() -> None:
    raise OSError("Network is unreachable")


def test_two_urls_with_one_file_name_are_kept_apart(hub: Path) -> None:
    assert download_path("https://a.example/sscd.pt") != download_path("https://b.example/sscd.pt")
    assert download_path("https://a.example/../../sscd.pt").parent.parent == hub / "attraction_basin"


def test_the_kind_of_a_file_is_in_its_urls_path() -> None:
    """Not in what follows it."""
    check_sscd("https://models.test/sscd.pt?download=true")
    with pytest.raises(ValueError, match="'https://models.test/sscd.zip': give a .pt"):  # and nothing secret
        check_sscd("https://user:key@models.test/sscd.zip?name=sscd.pt")
