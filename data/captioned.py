"""Captioned images from disk, as samples {id, image, caption}: webdataset shards, or a folder of images.

Images stay encoded until they are asked for, so 100,000 samples fit in memory. What cannot be read is
skipped, counted and reported (`skipped`), never silently lost.
"""

import glob
import gzip
import io
import logging
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

log = logging.getLogger(__name__)
IMAGE_SUFFIXES = ("webp", "png", "jpg", "jpeg")
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Sample:
    """One captioned image: its id (its key in the shard, or its file stem), encoded bytes and caption."""

    id: str
    image: bytes = field(repr=False)
    caption: str

    def rgb(self, resolution: int | None = None) -> Image.Image:
        """Decoded, on white where transparent; `resolution`: resized on the short side, centre-cropped."""
        image = Image.open(io.BytesIO(self.image))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        if resolution and image.size != (resolution, resolution):
            image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
        return image

    def pixels(self, resolution: int) -> np.ndarray:
        """uint8 of shape (3, resolution, resolution)."""
        return np.asarray(self.rgb(resolution)).transpose(2, 0, 1).copy()


@dataclass
class CaptionedImages:
    """Samples in a fixed order, and why others were left out (reason -> how many)."""

    samples: list[Sample]
    skipped: Counter = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @cached_property
    def position(self) -> dict[str, int]:
        """Where each id stands."""
        return {sample.id: index for index, sample in enumerate(self.samples)}

    def report(self) -> str:
        lost = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        return f"{len(self):,} captioned images" + (f" (skipped: {lost})" if lost else "")


def shard_paths(pattern: str) -> list[str]:
    """Files of braces and globs (`{00000..00009}.tar`), sorted; FileNotFoundError for a part without any."""
    from braceexpand import braceexpand

    paths = set()
    for part in braceexpand(pattern):
        found = glob.glob(part)
        if not found:
            raise FileNotFoundError(f"no shard matches {part!r}")
        paths.update(found)
    return sorted(paths)


def is_whole(path: str) -> bool:
    """Whether a shard ends in a tar's two empty blocks: tarfile takes a cut between members for the end."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    tail = b""
    try:
        with gzip.open(path) if packed else open(path, "rb") as tar:
            if not packed:
                tar.seek(max(0, Path(path).stat().st_size - 1024))
            while block := tar.read(1 << 20):
                tail = (tail + block)[-1024:]
    except (EOFError, OSError, zlib.error):
        return False
    return tail == bytes(1024)


def read_shards(paths: list[str], skipped: Counter) -> Iterator[Sample]:
    """Samples of img2dataset-form shards. A shard that breaks off gives what it held before the break."""
    import webdataset as wds

    for path in paths:
        errors: list[Exception] = []  # `append` returns None, which tells webdataset to end the shard there
        rows = wds.DataPipeline(wds.SimpleShardList([path]), wds.tarfile_to_samples(handler=errors.append))
        for row in rows:
            image = next((row[suffix] for suffix in IMAGE_SUFFIXES if suffix in row), None)
            yield from checked(row["__key__"], image, row.get("txt"), skipped)
        if errors or not is_whole(path):
            skipped["broken shards"] += 1
            log.warning(
                "%s breaks off, what came after is lost: %s", path, errors[0] if errors else "no end mark"
            )


def is_image(path: Path) -> bool:
    return path.suffix[1:].lower() in IMAGE_SUFFIXES


def read_folder(folder: Path, skipped: Counter) -> Iterator[Sample]:
    """Samples of a folder: images, with captions in `.txt` files or in `metadata.jsonl` (file_name, text)."""
    if (folder / "metadata.jsonl").exists():
        from datasets import Image as ImageFeature
        from datasets import load_dataset

        # Named, because datasets would take a file called test_1.png for a test split.
        rows = load_dataset("imagefolder", data_dir=str(folder), data_files={"train": "**"}, split="train")
        caption = next((name for name in ("text", "caption") if name in rows.column_names), None)
        if caption is None:
            raise ValueError(f"{folder}/metadata.jsonl has no 'text' or 'caption' field: {rows.column_names}")
        listed = set()
        for row in rows.cast_column("image", ImageFeature(decode=False)):
            path = Path(row["image"]["path"])
            listed.add(path.resolve())
            image = row["image"]["bytes"] or (path.read_bytes() if path.exists() else None)
            yield from checked(path.stem, image, row[caption], skipped)
        for path in folder.rglob("*"):
            if is_image(path) and path.resolve() not in listed:
                skipped["without caption"] += 1
        return
    for path in sorted(filter(is_image, folder.iterdir())):
        caption_file = path.with_suffix(".txt")
        caption = caption_file.read_bytes() if caption_file.exists() else None
        yield from checked(path.stem, path.read_bytes(), caption, skipped)


def checked(key: str, image: bytes | None, caption: bytes | str | None, skipped: Counter) -> Iterator[Sample]:
    """The sample, if it has an image that opens and a caption; else nothing, and the reason is counted."""
    text = (caption.decode("utf-8", "replace") if isinstance(caption, bytes) else caption or "").strip()
    if image is None:
        skipped["without image"] += 1
    elif not text:
        skipped["without caption"] += 1
    else:
        try:
            opened = Image.open(io.BytesIO(image))
            # verify() does not look into a JPEG: one that was cut shows only when it is decoded
            opened.load() if opened.format == "JPEG" and not image.endswith(b"\xff\xd9") else opened.verify()
        except Exception:  # PIL raises half a dozen kinds, SyntaxError among them
            skipped["unreadable images"] += 1
        else:
            yield Sample(key, image, text)


def load_captioned(*sources: str) -> CaptionedImages:
    """Read every source: a shard pattern, a folder of shards, or a folder of captioned images.

    Raises FileNotFoundError for a missing source, ValueError if nothing usable is found or an id comes twice.
    """
    skipped: Counter = Counter()
    samples: list[Sample] = []
    for source in sources:
        folder = Path(source)
        if folder.is_dir():
            shards = sorted(str(path) for path in folder.iterdir() if path.name.endswith(SHARD_SUFFIXES))
            found = read_shards(shards, skipped) if shards else read_folder(folder, skipped)
        elif source.endswith(SHARD_SUFFIXES):
            found = read_shards(shard_paths(source), skipped)
        else:
            raise FileNotFoundError(
                f"data source {source!r} is neither a folder nor a shard pattern (*.tar, *.tar.gz)"
            )
        samples.extend(found)
    ids = Counter(sample.id for sample in samples)
    twice = [key for key, count in ids.items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} ids stand more than once in {sources}, the first is {twice[0]!r}")
    if not samples:
        raise ValueError(f"no captioned image in {sources}: {dict(skipped) or 'they are empty'}")
    images = CaptionedImages(samples, skipped)
    if skipped:
        log.warning("%s", images.report())
    return images
