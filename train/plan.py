"""What a finetune would do, and what it needs, before it does it."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from transformers import CLIPTokenizer

from data.captioning import Captioning, Captions
from data.pipeline import check_pipeline
from train.finetune import Finetune
from train.latents import LatentData
from train.sharded import Sharded
from train.sizes import FLOAT, Sizes, moments, sizes

UNKNOWN = "known once the model is fetched"


def plan_table(model: Finetune, data: LatentData, trainer: Any) -> Table:
    """Steps, images seen, exposures, memory and disk; what is not on this machine is named, not guessed."""
    table = Table(title="plan", show_header=False)
    per_device = data.batch_size * trainer.accumulate_grad_batches
    batch = per_device * trainer.world_size
    draws = batch * trainer.max_steps

    def row(name: str, value: Any) -> None:
        table.add_row(name, value if isinstance(value, Text) else str(value))

    row("model", model.source + (f" @ {model.revision}" if model.revision else ""))
    known = None
    try:
        check_pipeline(model.source)
        known = sizes(model.source, model.revision)
        row("model folder", "found, or a Hub id: fetched when the fit starts")
    except FileNotFoundError as error:
        row("model folder", f"missing: {error}")
    row("trained", what_is_trained(model, known) if known else UNKNOWN)
    row("optimizer steps", f"{trainer.max_steps:,}")
    accumulated = trainer.accumulate_grad_batches
    devices = f"{trainer.world_size} device{'s' * (trainer.world_size > 1)}"
    row(
        "batch",
        f"{data.batch_size} per device, {batch:,} in all ({devices}, {accumulated} accumulated)",
    )
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
        needed = human(memory_bytes(model, data, known, kept, shards))
        row("memory per device", f"at least {needed}, without activations")
        row("checkpoint", f"{human(written)}")
        row("exported folder", human(export_bytes(model, known)))
        # a new checkpoint is whole before the old one goes
        needs[Path(trainer.default_root_dir)] = 2 * written + export_bytes(model, known)
    try:
        data.load()
    except FileNotFoundError as error:
        row("data", f"missing: {error}; exposures per image are the draws over their number")
        disk(row, needs)
        return table
    data.check_batch(batch)
    images, ordinary = len(data.images), len(data.ordinary_images)
    exposure = data.exposure
    duplicated = (
        len(exposure.duplicated(images, data.seed)) if exposure.copies > 1 or exposure.weight != 1 else 0
    )
    one_pass = len(exposure.one_pass(images, ordinary, data.seed, 0))
    row("images", f"{data.images.report()}, {duplicated:,} of them duplicated")
    row("ordinary images", data.ordinary_images.report() if ordinary else "none")
    row("draws in a pass", f"{one_pass:,}; passes: {draws / one_pass:.2f}")
    if exposure.weight == 1:
        row("exposures of a duplicated image", f"{exposure.copies * draws / one_pass:.1f}")
        others = draws / one_pass
    else:
        others = draws * images / one_pass  # without the ordinary ones
        others /= images - duplicated + exposure.weight * duplicated
        row(
            "exposures of a duplicated image",
            f"{others * exposure.weight:.1f} expected (drawn with replacement)",
        )
    if 0 < duplicated < images:
        row("exposures of another image", f"{others:.1f}")
    row("captions", said(data))
    captions = captions_of(model, data)
    if data.cache_folder is None:
        row("cache", "off: each batch is encoded anew")
    elif known:
        cached = cache_bytes(data, known, images + ordinary, cached_captions(model, data, captions))
        row("cache", f"{human(cached)} in {data.cache_folder}, less what is there")
        needs[data.cache_folder] = cached
    else:
        row("cache", UNKNOWN)
    disk(row, needs)
    return table


def said(data: LatentData) -> str:
    """What differs from each image's own caption."""
    options = {
        key: value for key, value in asdict(data.captioning).items() if value != getattr(Captioning, key)
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


def checkpoint_bytes(model: Finetune, known: Sizes, average: bool) -> int:
    """Trained weights, their average if one is kept (float32 each) and the optimizer's moments."""
    tensors = known.trained(model.text_encoder, model.lora_rank)
    return FLOAT * (1 + average) * sum(tensors) + moments(tensors, model.optimizer)


def memory_bytes(model: Finetune, data: LatentData, known: Sizes, average: bool, shards: int) -> int:
    """A checkpoint's content, gradients, and the frozen weights that each step needs.

    A lower bound: activations, copies in 16 bits and DDP's buckets come on top. An encoder whose outputs are
    cached waits in main memory.
    """
    frozen = 0 if model.lora_rank is None else sum(known.trained(model.text_encoder, None))
    if not model.text_encoder and (data.cache_folder is None or data.captioning.edits):
        frozen += sum(known.text_encoder)
    if data.cache_folder is None:
        frozen += sum(known.vae)
    gradients = sum(known.trained(model.text_encoder, model.lora_rank))
    return (checkpoint_bytes(model, known, average) + FLOAT * gradients) // shards + FLOAT * frozen


def export_bytes(model: Finetune, known: Sizes) -> int:
    """The whole pipeline in float32; and a LoRA, which is fused into it, alone too."""
    lora = 0 if model.lora_rank is None else sum(known.trained(model.text_encoder, model.lora_rank))
    return FLOAT * (sum(known.unet) + sum(known.text_encoder) + sum(known.vae) + lora)


def captions_of(model: Finetune, data: LatentData) -> Captions | None:
    """Captions as the fit will have them; None where they need a tokenizer that is not on this machine."""
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            model.source, subfolder="tokenizer", revision=model.revision, local_files_only=True
        )
    except (OSError, ValueError):
        tokenizer = None
        if data.captioning.level == "random" or data.captioning.edits:
            return None
    return data.captions_with(tokenizer)


def cached_captions(model: Finetune, data: LatentData, captions: Captions | None) -> int:
    """How many embeddings are cached: none where captions or their encoder change with each step."""
    if data.captioning.edits or model.text_encoder:
        return 0
    # random tokens: one text an image
    return len(captions.texts) if captions else len(data.everything)


def cache_bytes(data: LatentData, known: Sizes, images: int, captions: int) -> int:
    """Mean and deviation of each image's latents (and of its mirrored one's), an embedding a caption."""
    channels, height, width = known.latent(data.resolution or known.native_resolution)
    latents = images * (1 + data.flip) * 2 * channels * height * width
    return data.cache_dtype.itemsize * (latents + captions * known.tokens * known.width)


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


def human(size: float) -> str:
    """Bytes in words: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
