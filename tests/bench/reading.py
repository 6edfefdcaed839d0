"""Rows of reading: the nearest training image, and batches from shards."""

import io
from functools import cache
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, TensorDataset

from data.captioned import load_captioned
from data.emoji import SHARDS
from data.sources.stream import ShardStream
from infer.metrics.similarity import match
from tests.bench.rows import Setting, Side, row
from tests.bench.training import BATCH as TRAINED
from tests.bench.training import fit

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


@row("latents to batches", "torch's own reading")
def latents(setting: Setting) -> tuple[Side, Side]:
    """Both return how many rows they made ready, each epoch in another order."""
    data, batches = fit(setting, setting.folder / "cache").datamodule, 20 * setting.steps
    data.trainer.fit_loop.epoch_loop.max_steps = data.trainer.global_step + batches
    cached, texts = data.dataset.latents, data.dataset.embeddings
    path = str(setting.folder / "latents.pt")
    torch.save([cached.all_of("mean"), cached.all_of("std"), texts.all_of("embedding")], path)

    def ours() -> int:
        return sum(len(batch["embedding"]) for batch in islice(data.train_dataloader(), batches))

    def theirs() -> int:
        rows = TensorDataset(*torch.load(path, mmap=True, weights_only=True))
        epochs = repeat(DataLoader(rows, TRAINED, shuffle=True, drop_last=True))
        return sum(len(batch[0]) for batch in islice(chain.from_iterable(epochs), batches))

    return ours, theirs


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
