"""Load a Stable Diffusion pipeline, with errors that say what to do."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def is_hub_id(name: str) -> bool:
    """`owner/name`, and no such folder here."""
    return (
        name.count("/") == 1
        and not name.startswith((".", "/", "~", "outputs/", "data/"))
        and not Path(name).exists()
    )


def check_pipeline(name: str) -> None:
    """FileNotFoundError when a local pipeline folder is missing or lacks a part. Hub ids pass."""
    if is_hub_id(name):
        return
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no model folder {name!r}: give a diffusers pipeline folder or a Hub id (owner/name)"
        )
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing or not (folder / "model_index.json").exists():
        raise FileNotFoundError(
            f"{name!r} is not a whole diffusers pipeline: it lacks {', '.join(missing) or 'model_index.json'}"
        )


def fingerprint(name: str) -> str | None:
    """Of the name, size and last 64 KiB of each file of a local pipeline; None for Hub ids.

    A model trained again into the same folder has another one.
    """
    folder, digest = Path(name), hashlib.sha256()
    if not folder.is_dir():
        return None
    for path in sorted(file for part in PARTS for file in (folder / part).iterdir() if file.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            digest.update(file.read())
    return digest.hexdigest()[:12]


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Without the bars of diffusers and transformers for what takes a second; those of downloads stay."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    def quiet(factory, args, kwargs):
        return factory(*args, **(kwargs | {"disable": True}))

    hook = transformers_logging.set_tqdm_hook(quiet)
    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)
        if shown:
            diffusers_logging.enable_progress_bar()


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
    name: str, revision: str | None = None, scheduler: str = "own", dtype: torch.dtype = torch.float32
) -> Any:
    """StableDiffusionPipeline in eval mode; safetensors only; `scheduler` is own, ddim or dpm."""
    import diffusers
    from safetensors import SafetensorError

    kinds = {"ddim": diffusers.DDIMScheduler, "dpm": diffusers.DPMSolverMultistepScheduler}
    check_pipeline(name)
    try:
        with quiet_bars():
            pipe = pipeline_class().from_pretrained(
                name, revision=revision, dtype=dtype, safety_checker=None, requires_safety_checker=False,
                use_safetensors=True,
            )  # fmt: skip
    except (OSError, SafetensorError) as error:
        if not is_hub_id(name):
            raise FileNotFoundError(
                f"{name!r} is not a whole diffusers pipeline: {str(error).splitlines()[0]}"
            ) from error
        raise FileNotFoundError(
            f"cannot load {name!r} from the Hub ({str(error).splitlines()[0]}): check the id and revision, "
            "log in with `hf auth login` if it is gated, or give a local diffusers folder"
        ) from error
    if scheduler != "own":
        pipe.scheduler = kinds[scheduler].from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    return pipe
