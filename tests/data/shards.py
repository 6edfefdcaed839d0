"""Small shards, sound and faulty, and batches of their streams."""

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from data.sources.stream import ShardStream
from tests.data.image_files import encoded, noise, write_tar

BATCH = 4


def write_shards(folder: Path, sizes: list[int]) -> list[str]:
    """Samples `s00000`, ... with two captions in each, as many in each shard as `sizes` says."""
    folder.mkdir(exist_ok=True)
    paths, number = [], itertools.count()
    for shard, size in enumerate(sizes):
        paths.append(str(folder / f"{shard:05}.tar"))
        with wds.TarWriter(paths[-1], encoder=False) as tar:
            for index in itertools.islice(number, size):
                texts = f'{{"caption": ["image {index}", "number {index}"]}}'
                tar.write({"__key__": f"s{index:05}", "png": coloured(index), "json": texts.encode()})
    return paths


def coloured(index: int) -> bytes:
    return encoded(Image.new("RGB", (9, 6), (index % 256, index // 256, 7)))


def damaged() -> bytes:
    """A JPEG that opens and ends as it should, but has no scan between."""
    whole = noise(0, "jpeg")
    cut = whole[: whole.index(b"\xff\xda")] + b"\xff\xd9"
    with pytest.raises(OSError):
        Image.open(io.BytesIO(cut)).load()
    return cut


def loaded(stream: ShardStream, workers: int = 0, **options: Any) -> Any:
    return iter(DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=dict, **options))


def taken(stream: ShardStream, count: int, workers: int = 0, **options: Any) -> list[dict[str, Any]]:
    batches = loaded(stream, workers, **options)
    try:
        return list(itertools.islice(batches, count))
    finally:
        if workers:  # an error keeps hold of the iterator, and torch then waits seconds for each worker
            batches._shutdown_workers()


def ids(batches: list[dict[str, Any]]) -> list[str]:
    return [name for batch in batches for name in batch["id"]]


def assert_same(batches: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected, strict=True):
        assert torch.equal(one["pixels"], other["pixels"])
        assert all(one[key] == other[key] for key in ("id", "caption", "skipped"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Eight of 6 samples each: 4 readers are given 3 whole batches in an epoch."""
    return write_shards(tmp_path_factory.mktemp("even"), [6] * 8)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Five uneven shards with one of each fault; the undecodable image lies in the first."""
    folder = tmp_path_factory.mktemp("faulty")
    paths = write_shards(folder, [7, 3, 8, 5])
    text, cut = b"a text", Path(paths[2])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    lost = {"x1.png": encoded(), "x2.png": b"not an image", "x2.txt": text, "x3.txt": text}
    good = {f"y{index}.png": coloured(index) for index in range(200, 206)}
    captions = {name.replace("png", "txt"): text for name in good}
    write_tar(folder / "99999.tar", lost | dict(sorted((good | captions).items())))
    return [*paths, str(folder / "99999.tar")]
