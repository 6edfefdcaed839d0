"""What a finetune would do, and what it needs, before it does it."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from transformers import CLIPTokenizer

from data.captions import Captioning, Captions
from data.sources.shards import read_stats
from infer.models.pipeline import MIRRORS, check_pipeline
from infer.models.weights import is_hub_id
from train.dataset.planned import LatentData
from train.dataset.streamed import StreamedData
from train.finetune import Finetune
from train.plan.needs import cache_bytes, cached_captions, checkpoint_bytes, export_bytes, human, memory_bytes
from train.plan.sizes import Sizes, sizes
from train.sharded import Sharded

UNKNOWN = "known once the model is fetched"
Row = Callable[[str, Any], None]


def plan_table(model: Finetune, data: LatentData | StreamedData, trainer: Any) -> tuple[Table, list[str]]:
    """Steps, images seen, exposures, memory and disk; and what is missing here for a fit to start.

    What is not on this machine is named, not guessed. Raises ValueError for what the fit would refuse.
    """
    table, missing = Table(title="plan", show_header=False), []
    batch = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    draws = batch * trainer.max_steps

    def row(name: str, value: Any) -> None:
        table.add_row(name, value if isinstance(value, Text) else str(value))

    row("model", model.source + (f" @ {model.revision}" if model.revision else ""))
    known = None
    try:
        known, where = found(model)
        row("model folder", where)
    except FileNotFoundError as error:
        row("model folder", f"missing: {error}")
        missing.append(str(error))
    if known:
        known.check_resolution(data.resolution)
    row("trained", what_is_trained(model, known) if known else UNKNOWN)
    row("optimizer steps", f"{trainer.max_steps:,}")
    accumulated = trainer.accumulate_grad_batches
    devices = f"{trainer.world_size} device{'s' * (trainer.world_size > 1)}"
    row("batch", f"{data.batch_size} per device, {batch:,} in all ({devices}, {accumulated} accumulated)")
    row("learning rate", f"{model.lr:g}, {model.warmup_steps:,} warm-up steps, then {model.decay}")
    row("precision", trainer.precision)
    gamma = "none" if model.min_snr_gamma is None else f"min-SNR, gamma {model.min_snr_gamma:g}"
    row("loss weights; noise offset", f"{gamma}; {model.noise_offset:g}")
    row("images shown in all", f"{draws:,}")
    needs: dict[Path, int] = {}
    if known:
        kept = averaged(trainer)
        shards = trainer.world_size if isinstance(trainer.strategy, Sharded) else 1
        written = checkpoint_bytes(model, known, kept)
        live_images = isinstance(data, StreamedData) or data.cache_folder is None
        live_captions = live_images or data.captions.edits
        needed = memory_bytes(model, known, kept, shards, live_images, live_captions)
        row("memory per device", f"at least {human(needed)}, without activations")
        row("checkpoint", human(written))
        row("exported folder", human(export_bytes(model, known)))
        # a new checkpoint is whole before the old one goes
        needs[Path(trainer.default_root_dir)] = 2 * written + export_bytes(model, known)
    try:
        if isinstance(data, StreamedData):
            stream_rows(row, data, trainer, batch)
        else:
            needs |= planned_rows(row, model, data, known, batch, draws)
    except FileNotFoundError as error:
        row("data", f"missing: {error}; exposures per image are the draws over their number")
        missing.append(str(error))
    disk(row, needs)
    return table, missing


def found(model: Finetune) -> tuple[Sizes | None, str]:
    """How large the model is, and where it is; FileNotFoundError for a folder or id that is not there."""
    check_pipeline(model.source)
    known = sizes(model.source, model.revision)
    if known is None and model.source in MIRRORS:
        raise FileNotFoundError(
            f"{model.source!r} left the Hub: --model.pipeline {MIRRORS[model.source]} is a mirror"
        )
    if not is_hub_id(model.source):
        return known, "found"
    return known, "of the Hub, fetched before" if known else "of the Hub: fetched when the fit starts"


def planned_rows(
    row: Row, model: Finetune, data: LatentData, known: Sizes | None, batch: int, draws: int
) -> dict[Path, int]:
    """Exposures, captions and cache; the bytes of the last by their folder."""
    data.load()
    data.check_batch(batch)
    images, ordinary, exposure = len(data.images), len(data.ordinary_images), data.exposure
    duplicated = int(exposure.is_duplicated(images, ordinary, data.seed).sum())
    one_pass = exposure.pass_length(images, data.seed)
    row("images", f"{data.images.report()}, {duplicated:,} of them duplicated")
    row("layout", " | ".join(data.images.layouts))
    row("ordinary images", data.ordinary_images.report() if ordinary else "none")
    row("draws in a pass", f"{one_pass:,}; passes: {draws / one_pass:.2f}")
    passes = draws / one_pass
    if exposure.weight == 1:
        duplicate, other = f"{exposure.copies * passes:.1f}", passes
    else:
        other = passes * images / (images - duplicated + exposure.weight * duplicated)
        duplicate = f"{other * exposure.weight:.1f} expected (drawn with replacement)"
    if duplicated:
        row("exposures of a duplicated image", duplicate)
    if duplicated < images:
        row("exposures of another image" if duplicated else "exposures of an image", f"{other:.1f}")
    row("captions", said(data))
    captions = captions_of(model, data)
    if data.cache_folder is None:
        row("cache", "off: each batch is encoded anew")
        return {}
    if not known:
        row("cache", UNKNOWN)
        return {}
    cached = cache_bytes(data, known, images + ordinary, cached_captions(model, data, captions))
    row("cache", f"{human(cached)} in {data.cache_folder}, less what is there")
    return {data.cache_folder: cached}


def stream_rows(row: Row, data: StreamedData, trainer: Any, batch: int) -> None:
    """Shards, and what img2dataset says is in them: nothing is read."""
    paths = data.find(trainer.world_size)
    counts = [read_stats(path) for path in paths]
    row("shards", f"{len(paths):,}, streamed; {data.workers} readers per device")
    if all(count is not None for count in counts):
        images = sum(count["successes"] for count in counts)
        row("images", f"{images:,}, as img2dataset counted")
        row("passes", f"{batch * trainer.max_steps / max(1, images):.2f}")
    else:
        row("images", "known once they are read: not every shard has its _stats.json")
    row("exposures", "counted while it trains, and not planned")
    row("cache", "off: each batch is encoded anew")


def said(data: LatentData) -> str:
    """What differs from each image's own caption."""
    options = {
        key: value for key, value in asdict(data.captions).items() if value != getattr(Captioning, key)
    }
    if data.exposure.duplicate == "image":
        options["duplicated images"] = "a random one of their own"
    return ", ".join(f"{key}: {value}" for key, value in options.items()) or "each image's own"


def what_is_trained(model: Finetune, known: Sizes) -> str:
    """Parts and parameters, such as `UNet: 865,910,724 parameters`."""
    parts = "UNet and text encoder" if model.text_encoder else "UNet"
    trained = f"{sum(known.trained(model.text_encoder, model.lora_rank)):,} parameters"
    if model.lora_rank is None:
        return f"{parts}: {trained}"
    frozen = sum(known.trained(model.text_encoder, None))
    return f"LoRA of rank {model.lora_rank} on {parts}: {trained}, beside {frozen:,} frozen"


def averaged(trainer: Any) -> bool:
    """Whether callbacks.ema.EMA keeps an average; by name, for `train` imports no callbacks."""
    return any(type(callback).__name__ == "EMA" and callback.decay for callback in trainer.callbacks)


def captions_of(model: Finetune, data: LatentData) -> Captions | None:
    """Captions as the fit will have them; None where they need a tokenizer that is not on this machine."""
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            model.source, subfolder="tokenizer", revision=model.revision, local_files_only=True
        )
    except (OSError, ValueError):
        tokenizer = None
        if data.captions.level == "random" or data.captions.edits:
            return None
    return data.captions_with(tokenizer)


def disk(row: Any, needs: dict[Path, int]) -> None:
    """A row a disk: what is needed there and what is free, in red where it is not enough."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in needs.items():
        there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
        first, total = disks.get(there.stat().st_dev, (there, 0))
        disks[there.stat().st_dev] = first, total + size
    for there, needed in disks.values():
        free = shutil.disk_usage(there).free
        value = f"{human(needed)} needed, {human(free)} free in {there}"
        short = Text(f"not enough: {value}", style="bold red")
        row("disk", short if needed > free else value)
