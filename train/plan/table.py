"""What a finetune would do and need, as a table."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import CLIPTokenizer

from data.regimes.captions import Captioning, Captions
from data.regimes.exposure import Exposure
from data.repeats.pictures import pictures_of
from data.sources.shards import read_stats
from infer.models.pipeline import MIRRORS, check_pipeline
from infer.models.weights import is_hub_id
from train.dataset.planned import LatentData
from train.dataset.streamed import StreamedData
from train.finetune import Finetune
from train.model_check import check_model
from train.plan.needs import cache_bytes, cached_captions, checkpoint_bytes, export_bytes, memory_bytes
from train.plan.sizes import Sizes, read_configs, sizes_of
from train.sharded import Sharded

UNKNOWN = "known once the model is downloaded"
Row = Callable[[str, str | Text], None]


def plan_table(model: Finetune, data: LatentData | StreamedData, trainer: Any) -> tuple[Table, list[str]]:
    """Steps, images shown, exposures, memory and disk; and what is missing here for a fit to start.

    What is not on this machine is named, not estimated. Raises ValueError for what the fit would refuse.
    """
    table, missing = Table(title="plan", show_header=False), []
    accumulated = trainer.accumulate_grad_batches
    batch = data.batch_size * accumulated * trainer.world_size
    draws = batch * trainer.max_steps

    def row(name: str, value: str | Text) -> None:
        table.add_row(name, escape(value) if isinstance(value, str) else value)

    row("model", model.pipeline + (f" @ {model.revision}" if model.revision else ""))
    known = None
    try:
        known, where = known_sizes(model, callback_named(trainer, "Monitor"))
        row("model folder", where)
    except FileNotFoundError as error:
        row("model folder", f"missing: {error}")
        missing.append(str(error))
    row("trained", trained_parts(model, known) if known else UNKNOWN)
    row("optimizer steps", f"{trainer.max_steps:,}")
    devices = f"{trainer.world_size} device{'s' * (trainer.world_size > 1)}"
    row("batch", f"{data.batch_size} per device, {batch:,} in all ({devices}, {accumulated} accumulated)")
    row("learning rate", f"{model.lr:g}, {model.warmup_steps:,} warm-up steps, then {model.decay}")
    row("images shown in all", f"{draws:,}")
    needs: dict[Path, int] = {}
    if known:
        known.latent(data.resolution)  # refuses a resolution that the model cannot take
        ema = callback_named(trainer, "EMA")
        average, shards = bool(ema and ema.decay), 1
        if isinstance(trainer.strategy, Sharded):
            shards = trainer.world_size
        written = checkpoint_bytes(model, known, average)
        live_images = isinstance(data, StreamedData) or not data.cache
        live_captions = live_images or data.captions.edits
        needed = memory_bytes(model, known, average, shards, live_images, live_captions)
        row("memory per device", f"at least {decimal(needed)}, without activations")
        row("checkpoint", decimal(written))
        row("exported folder", decimal(export_bytes(model, known)))
        # a new checkpoint is complete before the old one is removed
        needs[Path(trainer.default_root_dir)] = 2 * written + export_bytes(model, known)
    try:
        if isinstance(data, StreamedData):
            stream_rows(row, data, trainer, draws)
        else:
            needs |= planned_rows(row, model, data, known, draws)
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
    row: Row, model: Finetune, data: LatentData, known: Sizes | None, draws: int
) -> dict[Path, int]:
    """Rows of exposures, captions and cache; the bytes of the cache by its folder."""
    data.load()
    images, ordinary, exposure = len(data.images), len(data.ordinary_images), data.exposure
    duplicated = exposure.is_duplicated(*data.repeats, data.seed)[:images]
    one_pass = exposure.pass_length(data.repeats[0], data.seed)
    row("images", f"{data.images.report()}, {duplicated.sum():,} of them duplicated")
    row("layout", " | ".join(data.images.layouts))
    row("ordinary images", data.ordinary_images.report() if ordinary else "none")
    passes = draws / one_pass
    row("draws in a pass", f"{one_pass:,}; passes: {passes:.2f}")
    shown = exposure.per_pass(*data.repeats, data.seed) * passes
    expected = " expected (drawn with replacement)" if exposure.weight != 1 else ""
    if duplicated.any():
        row("exposures of a duplicated image", range_of(shown[:images][duplicated]) + expected)
    if not duplicated.all():
        name = "another" if duplicated.any() else "an"
        row(f"exposures of {name} image", range_of(shown[:images][~duplicated]))
    row("most shown picture", pictures_of(data.everything.samples).most_shown(shown))
    row("captions", caption_options(data))
    captions = captions_of(model, data)
    if not (data.cache and known):
        row("cache", UNKNOWN if data.cache else "off: each batch is encoded anew")
        return {}
    cached = cache_bytes(data, known, images + ordinary, cached_captions(model, data, captions))
    row("cache", f"{decimal(cached)} in {data.cache}, less what exists")
    return {Path(data.cache): cached}


def range_of(values: np.ndarray) -> str:
    """One number, or the least and the largest."""
    numbers = dict.fromkeys(f"{value:.1f}" for value in (values.min(), values.max()))
    return " to ".join(numbers)


def stream_rows(row: Row, data: StreamedData, trainer: Any, draws: int) -> None:
    """Rows of the shards, and of the images that img2dataset counted in them: no shard is read."""
    paths = data.find(trainer.world_size)
    counts = [read_stats(path) for path in paths]
    row("shards", f"{len(paths):,}, streamed; {data.workers} readers per device")
    if all(count is not None for count in counts):
        images = sum(count["successes"] for count in counts)
        row("images", f"{images:,}, as img2dataset counted")
        row("passes", f"{draws / max(1, images):.2f}")
    else:
        row("images", "known once they are read: not every shard has its _stats.json")
    row("exposures", "counted while it trains, and not planned")
    row("cache", "off: each batch is encoded anew")


def caption_options(data: LatentData) -> str:
    """Options that show an image with another caption than its own."""
    options = asdict(data.captions) | {"duplicate": data.exposure.duplicate}
    usual = asdict(Captioning()) | {"duplicate": Exposure.duplicate}
    changed = [f"{key}: {value}" for key, value in options.items() if value != usual[key]]
    return ", ".join(changed) or "as the layout has them"


def trained_parts(model: Finetune, known: Sizes) -> str:
    """Parts and parameters, such as `UNet: 865,910,724 parameters`."""
    parts = "UNet and text encoder" if model.train_text_encoder else "UNet"
    lora = f"LoRA of rank {model.lora_rank} on " if model.lora_rank else ""
    return f"{lora}{parts}: {sum(known.trained):,} parameters"


def callback_named(trainer: Any, name: str) -> Any:
    return next((callback for callback in trainer.callbacks if type(callback).__name__ == name), None)


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
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        disk = existing.stat().st_dev
        first, total = disks.get(disk, (existing, 0))
        disks[disk] = first, total + size
    for folder, needed in disks.values():
        free = shutil.disk_usage(folder).free
        value = f"{decimal(needed)} needed, {decimal(free)} free in {folder}"
        short = Text(f"not enough: {value}", style="bold red")
        row("disk", short if needed > free else value)
