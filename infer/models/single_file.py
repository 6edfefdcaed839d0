"""Stable Diffusion checkpoints as one .safetensors file, in the layout of the original code."""

from typing import Any

from data.files import one_line
from infer.models.weights import no_warnings, tensor_names

UNET, VAE = "model.diffusion_model.", "first_stage_model."
PREFIXES = {"UNet": UNET, "VAE": VAE, "text encoder": "cond_stage_model."}
WEIGHTS = {  # without the buffers and the state of a training that may stand beside them
    "unet": (UNET,),
    "vae": tuple(VAE + part for part in ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")),
}


def check_single_file(name: str) -> None:
    """FileNotFoundError or ValueError unless the file is a Stable Diffusion 1 or 2; reads its header only."""
    names = tensor_names(name)
    if any(key.startswith("conditioner.") for key in names):
        raise ValueError(f"{name!r} is a Stable Diffusion XL checkpoint: give one of Stable Diffusion 1 or 2")
    missing = [
        f"{part} ({prefix}*)"
        for part, prefix in PREFIXES.items()
        if not any(key.startswith(prefix) for key in names)
    ]
    if missing:
        raise ValueError(
            f"{name!r} is not a whole Stable Diffusion checkpoint in the original layout: "
            f"it lacks the {', the '.join(missing)}"
        )


def load_single_file(pipeline_class: type, name: str, config: str | None, **options: Any) -> Any:
    """The pipeline of a checkpoint.

    Args:
        pipeline_class: StableDiffusionPipeline.
        name: .safetensors file.
        config: diffusers folder or Hub id with the configs; None: what diffusers chooses.
        options: revision of the config's repository, and dtype.

    Raises FileNotFoundError without the configs, ValueError unless file and model have the same weights.
    """
    source = f"the configs {config!r}" if config else "the configs that diffusers chose"
    advice = "give single_file_config, a diffusers folder or Hub id of the same architecture"
    try:
        with no_warnings():
            pipe = pipeline_class.from_single_file(
                name, config=config, safety_checker=None, requires_safety_checker=False,
                feature_extractor=None, **options,
            )  # fmt: skip
    except OSError as error:
        raise FileNotFoundError(f"cannot load {source} for {name!r} ({one_line(error)}): {advice}") from error
    except Exception as error:  # of many kinds, where shapes or blocks are not those of the configs
        why = "it lacks weights" if "meta tensor" in str(error) else one_line(error)
        raise ValueError(f"{name!r} does not fit {source} ({why}): {advice}") from error
    if why := mismatch(pipe, tensor_names(name)):
        raise ValueError(f"{name!r} does not fit {source} ({why}): {advice}")
    return pipe


def mismatch(pipe: Any, names: list[str]) -> str | None:
    """What diffusers left out without an error: weights of the file, or of the model; None if nothing."""
    for part, prefixes in WEIGHTS.items():
        in_file = sum(key.startswith(prefixes) for key in names)
        in_model = len(getattr(pipe, part).state_dict())
        if in_file != in_model:
            return f"the {part} has {in_model} tensors, the file {in_file}"
    for part in ("unet", "vae", "text_encoder"):
        if any(weight.is_meta for weight in getattr(pipe, part).parameters()):
            return f"it lacks weights of the {part}"
    return None
