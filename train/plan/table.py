"""What a finetune would do and need, as a table."""

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
from train.model_check import check_model
from train.plan.needs import cache_bytes, cached_captions, checkpoint_bytes, export_bytes, human, memory_bytes
from train.plan.sizes import Sizes, read_configs, sizes_of
from train.sharded import Sharded

UNKNOWN = "known once the model is downloaded"
Row = Callable[[str, Any], None]


def plan_table(model: Finetune, data: LatentData | StreamedData, trainer: Any) -> tuple[Table, list[str]]:
    """Steps, images shown, exposures, memory and disk; and what is missing here for a fit to start.

    What is not on this machine is named, not estimated. Raises ValueError for what the fit would refuse.
    """
    table, missing = Table(title="plan", show_header=False), []
    accumulated = trainer.accumulate_grad_batches
    batch = data.batch_size * accumulated * trainer.world_size
    draws = batch * trainer.max_steps

    def row(name: str, value: Any) -> None:
        table.add_row(name, value if isinstance(value, Text) else str(value))

    row("model", model.pipeline + (f" @ {model.revision}" if model.revision else ""))
    known = None
    try:
        known, where = known_sizes(model, callback_named(trainer, "Monitor"))
        row("model folder", where)
    except FileNotFoundError as error:
        row("model folder", f"missing: {error}")
        missing.append(str(error))
    if known:
        known.latent(data.resolution)
    row("trained", trained_parts(model, known) if known else UNKNOWN)
    row("optimizer steps", f"{trainer.max_steps:,}")
    devices = f"{trainer.world_size} device{'s' * (trainer.world_size > 1)}"
    row("batch", f"{data.batch_size} per device, {batch:,} in all ({devices}, {accumulated} accumulated)")
    row("learning rate", f"{model.lr:g}, {model.warmup_steps:,} warm-up steps, then {model.decay}")
    row("precision", trainer.precision)
    gamma = "none" if model.min_snr_gamma is None else f"min-SNR, gamma {model.min_snr_gamma:g}"
    row("loss weights; noise offset", f"{gamma}; {model.noise_offset:g}")
    row("images shown in all", f"{draws:,}")
    needs: dict[Path, int] = {}
    if known:
        average = has_average(trainer)
        shards = trainer.world_size if isinstance(trainer.strategy, Sharded) else 1
        written = checkpoint_bytes(model, known, average)
        live_images = isinstance(data, StreamedData) or not data.cache
        live_captions = live_images or data.captions.edits
        needed = memory_bytes(model, known, average, shards, live_images, live_captions)
        row("memory per device", f"at least {human(needed)}, without activations")
        row("checkpoint", human(written))
        row("exported folder", human(export_bytes(model, known)))
        # a new checkpoint is complete before the old one is removed
        needs[Path(trainer.default_root_dir)] = 2 * written + export_bytes(model, known)
    try:
        if isinstance(data, StreamedData):
            stream_rows(row, data, trainer, batch)
        else:
            needs |= planned_rows(row, model, data, known, batch, draws)
    except FileNotFoundError as error:
        row("data", f"missing: {error}; exposures per image are the draws over their number")
        missing.append(str(error))
    disk_rows(row, needs)
    return table, missing


def known_sizes(model: Finetune, monitor: Any) -> tuple[Sizes | None, str]:
    """Sizes of the model, and where it is.

    Raises FileNotFoundError for a folder or id that does not exist, ValueError for a model that cannot be
    trained, or that the monitor cannot generate images with.
    """
    check_pipeline(model.pipeline)
    configs = read_configs(model.pipeline, model.revision)
    if configs is None and model.pipeline in MIRRORS:
        raise FileNotFoundError(
            f"{model.pipeline!r} left the Hub: --model.pipeline {MIRRORS[model.pipeline]} is a mirror"
        )
    if configs:
        check_model(**configs)
        if monitor:
            monitor.check_scheduler(scheduler_from(configs["scheduler"]))
    where = "local"
    if is_hub_id(model.pipeline):
        where = "on the Hub, downloaded before" if configs else "on the Hub: downloaded when the fit starts"
    return configs and sizes_of(configs, model.train_text_encoder, model.lora_rank), where


def scheduler_from(config: dict[str, Any]) -> Any:
    import diffusers

    name = config.get("_class_name", "")
    if not hasattr(diffusers, name):
        raise ValueError(f"diffusers has no scheduler {name!r}: change scheduler/scheduler_config.json")
    return getattr(diffusers, name).from_config(config)


def planned_rows(
    row: Row, model: Finetune, data: LatentData, known: Sizes | None, batch: int, draws: int
) -> dict[Path, int]:
    """Rows of exposures, captions and cache; the bytes of the cache by its folder."""
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
    row("captions", caption_options(data))
    captions = captions_of(model, data)
    if not data.cache:
        row("cache", "off: each batch is encoded anew")
        return {}
    if not known:
        row("cache", UNKNOWN)
        return {}
    cached = cache_bytes(data, known, images + ordinary, cached_captions(model, data, captions))
    row("cache", f"{human(cached)} in {data.cache}, less what exists")
    return {Path(data.cache): cached}


def stream_rows(row: Row, data: StreamedData, trainer: Any, batch: int) -> None:
    """Rows of the shards, and of what img2dataset counted in them: no shard is read."""
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


def caption_options(data: LatentData) -> str:
    """Options that show an image with another caption than its own."""
    options = {
        key: value for key, value in asdict(data.captions).items() if value != getattr(Captioning, key)
    }
    if data.exposure.duplicate == "image":
        options["duplicated images"] = "a random one of their own"
    return ", ".join(f"{key}: {value}" for key, value in options.items()) or "each image's own"


def trained_parts(model: Finetune, known: Sizes) -> str:
    """Parts and parameters, such as `UNet: 865,910,724 parameters`."""
    parts, whole = (
        ("UNet and text encoder", known.unet + known.text_encoder)
        if model.train_text_encoder
        else ("UNet", known.unet)
    )
    trained = f"{sum(known.trained):,} parameters"
    if model.lora_rank is None:
        return f"{parts}: {trained}"
    return f"LoRA of rank {model.lora_rank} on {parts}: {trained}, beside {whole:,} frozen"


def callback_named(trainer: Any, name: str) -> Any:
    return next((callback for callback in trainer.callbacks if type(callback).__name__ == name), None)


def has_average(trainer: Any) -> bool:
    """Whether callbacks.ema.EMA keeps an average."""
    ema = callback_named(trainer, "EMA")
    return bool(ema and ema.decay)


def captions_of(model: Finetune, data: LatentData) -> Captions | None:
    """The fit's captions; None where they need a tokenizer that is not on this machine."""
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            model.pipeline, subfolder="tokenizer", revision=model.revision, local_files_only=True
        )
    except (OSError, ValueError):
        tokenizer = None
        if data.captions.level == "random" or data.captions.edits:
            return None
    return data.captions_with(tokenizer)


def disk_rows(row: Row, needs: dict[Path, int]) -> None:
    """One row per disk: what is needed and what is free, in red where it is not enough."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in needs.items():
        existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
        first, total = disks.get(existing.stat().st_dev, (existing, 0))
        disks[existing.stat().st_dev] = first, total + size
    for folder, needed in disks.values():
        free = shutil.disk_usage(folder).free
        value = f"{human(needed)} needed, {human(free)} free in {folder}"
        short = Text(f"not enough: {value}", style="bold red")
        row("disk", short if needed > free else value)
