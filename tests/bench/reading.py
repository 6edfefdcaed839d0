"""Rows of reading: the nearest training image, and batches from shards."""

import io
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image, ImageOps

from data.captioned import load_captioned
from data.emoji import SHARDS
from data.sources.stream import ShardStream
from infer.metrics.similarity import match
from tests.bench.rows import Setting, Side, row

try:
    import faiss
except ImportError:
    faiss = None

QUERIES, WIDTH = 64, 512  # images of a batch, numbers of an SSCD descriptor
SIDE, RESOLUTION, BATCH, BUFFER = 512, 256, 16, 64  # px of the JPEGs and of a batch; images in the buffer


def unit(count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=random))


@row("search of 64 images", "faiss flat" if faiss else "torch.matmul and topk")
def search(setting: Setting) -> tuple[Side, Side]:
    """Both return the numbers of the nearest ones."""
    training, images = unit(setting.vectors, 0), unit(QUERIES, 1)

    def ours() -> torch.Tensor:
        return match(images, training, [[]] * QUERIES).top_index

    if faiss is None:
        return ours, lambda: torch.matmul(images, training.T).topk(1).indices[:, 0]
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(WIDTH)
    index.add(training.numpy())
    return ours, lambda: torch.from_numpy(index.search(images.numpy(), 1)[1][:, 0])


@row("shards to batches of pixels", "webdataset and PIL")
def shards(setting: Setting) -> tuple[Side, Side]:
    """Both return how many images they made: all whole batches of one epoch."""
    paths, batches = jpeg_shards(setting), setting.images // BATCH

    def ours() -> int:
        stream = ShardStream(paths, RESOLUTION, BATCH, seed=0, shuffle=BUFFER)
        return sum(len(batch["pixels"]) for batch in islice(stream, batches))

    def theirs() -> int:
        rows = wds.WebDataset(paths, shardshuffle=False).shuffle(BUFFER).decode("pil").to_tuple("jpg", "txt")
        loader = rows.map_tuple(pixels_of, str).batched(BATCH, partial=False)
        return sum(len(pixels) for pixels, _ in loader)

    return ours, theirs


def pixels_of(image: Image.Image) -> np.ndarray:
    fitted = ImageOps.fit(image, (RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS)
    return np.asarray(fitted).transpose(2, 0, 1)


@cache
def jpeg_shards(setting: Setting) -> list[str]:
    """Two shards of the bundled images, enlarged to 512 px, as img2dataset writes them."""
    samples = load_captioned(f"{SHARDS}/noto-00000.tar.gz").samples[: setting.images]
    paths = [str(Path(setting.folder, f"0000{number}.tar")) for number in range(2)]
    for number, path in enumerate(paths):
        with wds.TarWriter(path, encoder=False) as tar:
            for sample in samples[number::2]:
                data = io.BytesIO()
                sample.rgb().resize((SIDE, SIDE)).save(data, "jpeg", quality=95)
                row = {"jpg": data.getvalue(), "txt": sample.caption.encode()}
                tar.write({"__key__": sample.id, **row})
    return paths
