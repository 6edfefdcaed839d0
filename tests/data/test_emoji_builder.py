"""The bundled shards: how they are built, and that the committed ones are complete."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset as wds
from PIL import Image

from data.emoji import SHARDS, STYLES
from data.emoji import build as builder

SQUARE = '<path fill="{color}" d="M{left} {top}h{pixels}v{pixels}h-{pixels}z"/>'
ICONS = {
    "prefix": "fluent-emoji",
    "width": 32,
    "height": 32,
    "icons": {
        # The set's box of 32: red in the upper left quarter, transparent elsewhere.
        "red-square": {"body": SQUARE.format(color="#f00", left=0, top=0, pixels=16)},
        # A box of its own, which the square fills to the edge.
        "blue-square": {
            "body": SQUARE.format(color="#00f", left=-4, top=100, pixels=8),
            **{"left": -4, "top": 100, "width": 8, "height": 8},
        },
        "old-square": {"body": SQUARE.format(color="#0f0", left=0, top=0, pixels=32), "hidden": True},
        "hand-medium-dark": {"body": SQUARE.format(color="#840", left=0, top=0, pixels=32)},
        "hand-dark-skin-tone": {"body": SQUARE.format(color="#420", left=0, top=0, pixels=32)},
    },
    "aliases": {"scarlet-square": {"parent": "red-square"}},
}
INFO = {"author": {"name": "An Artist"}, "license": {"title": "MIT", "spdx": "MIT"}}
WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package as npm packs it, where `download` keeps it."""
    path = tmp_path / f"iconify-json-fluent-emoji-{builder.VERSIONS['fluent-emoji']}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, document in (("icons", ICONS), ("info", INFO)):
            content = json.dumps(document).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def build(package: Path) -> bytes:
    """The shard made of a package."""
    shard = io.BytesIO()
    icons, info = builder.read_package(package)
    assert builder.write_shard(shard, builder.samples(icons, info, "1.2.7")) == 2
    return shard.getvalue()


def test_a_shard_is_the_same_bytes_every_time(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another day too."""
    first = build(package)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert build(package) == first


def test_a_shard_holds_what_webdataset_reads(package: Path, tmp_path: Path) -> None:
    """No hidden icons, aliases or skin tones; caption, licence and author stand beside each image."""
    shard = tmp_path / "icons.tar.gz"
    shard.write_bytes(build(package))
    blue, red = wds.WebDataset(str(shard), shardshuffle=False)
    assert (blue["__key__"], red["__key__"]) == ("fluent-emoji_blue-square", "fluent-emoji_red-square")
    assert red["txt"] == b"red square"
    assert json.loads(red["json"]) == {
        "caption": "red square", "set": "fluent-emoji", "name": "red-square", "licence": "MIT",
        "author": "An Artist", "version": "1.2.7",
    }  # fmt: skip
    image = Image.open(io.BytesIO(red["webp"]))
    assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (64, 64))
    assert [image.getpixel(xy) for xy in ((1, 1), (30, 30), (33, 1), (1, 33), (62, 62))] == [RED, RED] + [
        WHITE
    ] * 3
    image = Image.open(io.BytesIO(blue["webp"]))
    assert image.getcolors() == [(64 * 64, BLUE)]


def test_a_package_on_disk_is_not_fetched_again(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a missing one is fetched from npm at its pinned version."""
    fetched = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: fetched.append(command[-1]))
    assert builder.download("fluent-emoji", package.parent) == package
    builder.download("noto", package.parent)
    assert fetched == [f"@iconify-json/noto@{builder.VERSIONS['noto']}"]


def test_committed_shards_are_complete() -> None:
    """Every set has its number of samples, each with three files, and no id stands twice."""
    counts, ids = {}, []
    for style in STYLES:
        with tarfile.open(SHARDS / f"{style}-00000.tar.gz") as shard:
            names = shard.getnames()
        keys = {name.rpartition(".")[0] for name in names}
        assert sorted(names) == sorted(
            f"{key}.{suffix}" for key in keys for suffix in ("webp", "txt", "json")
        )
        assert all(key.startswith(f"{style}_") for key in keys)
        counts[style] = len(keys)
        ids += keys
    assert counts == {
        "noto": 1689, "noto-v1": 1272, "twemoji": 1943, "fluent-emoji-flat": 1591, "emojione": 1409,
        "fluent-emoji": 1587,
    }  # fmt: skip
    assert len(set(ids)) == 9491
