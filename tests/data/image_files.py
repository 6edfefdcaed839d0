"""Training data as it lies on disk: images, shards, folders."""

import gzip
import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from data.captioned import load_captioned


def encoded(image: Image.Image | None = None, form: str = "png", **options: object) -> bytes:
    """An image as a file holds it, saved with these options of Pillow's."""
    file = io.BytesIO()
    (image or Image.new("RGB", (8, 8), "red")).save(file, form, **options)
    return file.getvalue()


def noise(seed: int, form: str = "png") -> bytes:
    """An image that does not compress, so that half of a gzipped shard holds about half of its images."""
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)), form)


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write a tar of files, gzipped if its name says so."""
    content = tar_of(files)
    path.write_bytes(gzip.compress(content) if path.name.endswith("gz") else content)
    return path


def write_shard(path: Path, ids: str) -> Path:
    """A shard with a sample for each letter of `ids`, captioned `a <letter>`."""
    files: dict[str, bytes] = {}
    for letter in ids:
        files |= {f"{letter}.png": noise(ord(letter)), f"{letter}.txt": f"a {letter}".encode()}
    return write_tar(path, files)


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


def write_folder(folder: Path, files: dict[str, bytes | str]) -> str:
    """A folder of files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder)


def captions_of(source: str | Path) -> dict[str, tuple[str, ...]]:
    """The captions of a source's images, by id."""
    return {sample.id: sample.captions for sample in load_captioned(str(source)).samples}
