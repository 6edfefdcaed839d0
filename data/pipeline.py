"""Load a Stable Diffusion pipeline of any form that people have, with errors that say what to do."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it in a folder or a repository
LORA_PREFIXES = ("unet.", "text_encoder.", "lora_unet_", "lora_te_", "lora_te1_")
ORIGINAL_LAYOUT = {  # of a single file: a weight by which each part is known, as SD 1 or SD 2 names it
    "UNet (model.diffusion_model.*)": ("model.diffusion_model.input_blocks.0.0.weight",),
    "VAE (first_stage_model.*)": ("first_stage_model.encoder.conv_in.weight",),
    "text encoder (cond_stage_model.*)": (
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "cond_stage_model.model.token_embedding.weight",
    ),
}


def is_file_name(name: str) -> bool:
    """Whether the name is of a file of weights, there or not, and of no folder."""
    return name.endswith((".safetensors", *PICKLES)) and not Path(name).is_dir()


def is_hub_id(name: str) -> bool:
    """`owner/name`, and no such folder here."""
    return (
        name.count("/") == 1
        and not name.startswith((".", "/", "~", "outputs/", "data/"))
        and not is_file_name(name)
        and not Path(name).exists()
    )


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


def check_lora(lora: str | None, lora_scale: float = 1.0) -> None:
    """FileNotFoundError or ValueError when LoRA weights are missing or of no kind that can be loaded.

    Only the file's header is read. Hub ids pass.
    """
    if lora is None:
        if lora_scale != 1:
            raise ValueError(f"lora_scale {lora_scale:g} does nothing without a LoRA: give lora too")
    elif not is_hub_id(lora):
        lora_layers(lora_file(lora), lora)


def lora_file(lora: str) -> Path:
    """The LoRA's file: itself, the one in the folder, or that of the Hub, which it fetches."""
    if is_file_name(lora):
        return Path(lora)
    if not is_hub_id(lora):
        if (Path(lora) / LORA_FILE).is_file():
            return Path(lora) / LORA_FILE
        raise FileNotFoundError(
            f"no LoRA {lora!r}: give a .safetensors file, a folder with {LORA_FILE} or a Hub id (owner/name)"
        )
    import huggingface_hub as hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        try:
            return Path(hub.hf_hub_download(lora, LORA_FILE))
        except RemoteEntryNotFoundError:
            files = [file for file in hub.list_repo_files(lora) if file.endswith(".safetensors")]
            if len(files) == 1:
                return Path(hub.hf_hub_download(lora, files[0]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"cannot load the LoRA {lora!r} from the Hub ({one_line(error)}): check the id, "
            "log in with `hf auth login` if it is gated, or give a local file"
        ) from error
    raise ValueError(
        f"{lora!r} on the Hub has no {LORA_FILE}, and {len(files)} other .safetensors files, not one: "
        "download the LoRA and give its file"
    )


def lora_layers(path: Path, lora: str) -> int:
    """How many layers the LoRA file changes; ValueError when it is no LoRA of a Stable Diffusion."""
    names = tensor_names(str(path))
    if any(other in key for key in names for other in ("dora_scale", "hada_", "lokr_")):
        raise ValueError(f"{lora!r} is a DoRA, LoHa or LoKr: give a plain LoRA")
    layers = [key for key in names if key.endswith((".lora_A.weight", "down.weight"))]
    if not any(key.startswith(LORA_PREFIXES) for key in layers):
        raise ValueError(
            f"{lora!r} is no LoRA for Stable Diffusion: none of its layers is {'*, '.join(LORA_PREFIXES)}*"
        )
    return len(layers)


def tensor_names(name: str) -> list[str]:
    """Of a safetensors file, from its header."""
    from safetensors import SafetensorError, safe_open

    if name.endswith(PICKLES):
        raise ValueError(f"{name!r} is a pickle, which may run code when read: convert it to .safetensors")
    if not Path(name).is_file():
        raise FileNotFoundError(f"no file {name!r}: check the path (one of the Hub is downloaded first)")
    try:
        with safe_open(name, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{name!r} is not a whole safetensors file ({one_line(error)}): download or convert it again"
        ) from error


def one_line(error: Exception) -> str:
    """What somebody else's error says, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


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


@contextmanager
def no_warnings() -> Iterator[None]:
    """Without the warnings of diffusers and transformers about what is checked here."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    levels = [(module, module.get_verbosity()) for module in (diffusers_logging, transformers_logging)]
    for module, _ in levels:
        module.set_verbosity(50)  # what they log as an error, they raise
    try:
        yield
    finally:
        for module, level in levels:
            module.set_verbosity(level)


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
        return pipeline_class().from_pretrained(
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


def fuse_lora(pipe: Any, lora: str, scale: float) -> None:
    """Add the LoRA to the weights: afterwards the parts are of the classes that they were."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    path = lora_file(lora)
    layers = lora_layers(path, lora)
    try:
        with no_warnings():
            pipe.load_lora_weights(
                path.parent, weight_name=path.name, use_safetensors=True, unet_config=pipe.unet.config
            )  # the config: to translate original names of blocks too
            modules = [*pipe.unet.modules(), *pipe.text_encoder.modules()]
            fitting = sum(isinstance(module, BaseTunerLayer) for module in modules)
            if fitting < layers:
                raise ValueError(f"{layers - fitting} of its {layers} layers have no counterpart")
            pipe.fuse_lora(lora_scale=scale)
            pipe.unload_lora_weights()
    except Exception as error:  # of many kinds, where names or shapes are not those of the model
        raise ValueError(
            f"the LoRA {lora!r} does not fit this model ({one_line(error)}): give one of its architecture"
        ) from error
