"""What is to be used: model, data, disks. Each check gives its findings."""

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from data.captioned import listed, samples_of
from data.files import one_line, user_cache
from data.sources.layouts import open_source
from infer.models.pipeline import check_pipeline
from infer.models.weights import is_file_name, is_hub_id

GIB = 1 << 30
SECONDS = 10  # that a server or a command may take to answer


class Finding(NamedTuple):
    """What was found of a subject. `broken`: nothing runs, or not as asked, until it is mended."""

    subject: str
    text: str
    broken: bool = False


def model(name: str, revision: str | None) -> Iterator[Finding]:
    """Whether the pipeline is whole: a local one, or a Hub's in the cache; else whether the Hub has it."""
    from huggingface_hub import HfApi, snapshot_download

    if not is_hub_id(name):
        try:
            check_pipeline(name)
            single = ", a single file: give it --model.single_file_config" if is_file_name(name) else ""
            yield Finding("model", f"{name} is whole{single}")
        except (OSError, ValueError) as error:
            yield Finding("model", one_line(error), True)
        return
    with suppress(Exception):  # of many kinds: not cached, or not whole
        folder = snapshot_download(name, revision=revision, local_files_only=True)
        check_pipeline(folder)
        yield Finding("model", f"{name} is in the cache: {folder}")
        return
    try:
        commit = HfApi().model_info(name, revision=revision, timeout=SECONDS).sha
        yield Finding(
            "model", f"{name} is on the Hub (commit {commit}), to be downloaded by `hf download {name}`"
        )
    except Exception as error:  # of many kinds, by the network and the client
        advice = f"check the id, log in (hf auth login), or run `hf download {name}` where there is a network"
        yield Finding(
            "model", f"{name} is neither in the cache nor reachable ({one_line(error)}): {advice}", True
        )


def source(name: str) -> Iterator[Finding]:
    """Whether a source of training data has an image that can be read; `data inspect` reads all."""
    skipped: Counter = Counter()
    try:
        opened = open_source(name, skipped)
        first = next(samples_of(opened.rows, skipped, threads=1, chunk=1), None)
        if first is None:
            raise ValueError(f"{name}: no captioned image that can be read: {listed(skipped)}")
        width, height = first.rgb().size
        yield Finding(
            "data", f"{name}: {opened.layout}; {first.id!r} is {width}x{height} px, {first.caption!r:.60}"
        )
    except (OSError, ValueError) as error:
        yield Finding("data", f"{one_line(error)}; `python -m data inspect SOURCE` shows what is there", True)


def disk(subject: str, folder: Path, needed: int) -> Iterator[Finding]:
    """Whether a file can be written to the folder, or where it would be made, and `needed` bytes are free."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=there) as file:
            file.write(b"\0")
        free = shutil.disk_usage(there).free
    except OSError as error:
        yield Finding(subject, f"{folder} cannot be written ({one_line(error)}): choose another folder", True)
        return
    text = f"{folder}: {free / GIB:.1f} GiB free"
    if free < needed:
        text += f", {needed / GIB:.1f} are needed: free some, or choose another folder"
    yield Finding(subject, text, broken=free < needed)


def caches(name: str | None) -> dict[str, Path]:
    """The folders in which downloads and digests are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    hub = {"hub cache": Path(HF_HUB_CACHE)} if name and is_hub_id(name) else {}
    return {"cache": user_cache()} | hub


def checkpoint_bytes(name: str | None) -> int:
    """What a finetune of the whole UNet writes: the exported model and, for a moment, two checkpoints.

    A checkpoint has weights, their average and AdamW's two moments, 4 bytes each. 0 for a model that does not
    lie in a local folder; `python -m train plan` knows a run's options.
    """
    if not name or not Path(name).is_dir():
        return 0
    whole, unet = (parameters(Path(name, part)) for part in ("", "unet"))
    return 4 * whole + 2 * 16 * unet


def parameters(folder: Path) -> int:
    """The number of values in the safetensors files below a folder, from their headers."""
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in folder.rglob("*.safetensors"):
        with suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
            count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return count
