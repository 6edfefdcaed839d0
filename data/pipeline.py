"""Load a Stable Diffusion pipeline, with errors that say what to do."""

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


def load_pipeline(
    name: str, revision: str | None = None, scheduler: str = "own", dtype: torch.dtype = torch.float32
) -> Any:
    """StableDiffusionPipeline in eval mode; safetensors only; `scheduler` is own, ddim or dpm."""
    import diffusers

    kinds = {"ddim": diffusers.DDIMScheduler, "dpm": diffusers.DPMSolverMultistepScheduler}
    check_pipeline(name)
    try:
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            name, revision=revision, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False,
            use_safetensors=True,
        )  # fmt: skip
    except OSError as error:
        if not is_hub_id(name):
            raise
        raise FileNotFoundError(
            f"cannot load {name!r} from the Hub ({str(error).splitlines()[0]}): check the id and revision, log in with "
            "`hf auth login` if it is gated, or give a local diffusers folder"
        ) from error
    if scheduler != "own":
        pipe.scheduler = kinds[scheduler].from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    return pipe
