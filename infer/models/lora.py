"""LoRA weights in diffusers' or kohya's naming, fused into a pipeline."""

from pathlib import Path
from typing import Any

from torch import Tensor

from data.cli import warn_no_effect
from data.files import one_line
from infer.models.hub import hub_commit, one_at_a_time
from infer.models.lora_switch import factors_of
from infer.models.weights import is_file_name, is_hub_id, no_warnings, tensor_names

LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it in a folder or a repository
LORA_PREFIXES = ("unet.", "text_encoder.", "lora_unet_", "lora_te_", "lora_te1_")
FACTORS = ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight"))  # kohya, diffusers


def check_lora(lora: str | None, lora_scale: float = 1.0) -> None:
    """FileNotFoundError or ValueError when LoRA weights are missing or of no kind that can be loaded.

    Only the file's header is read. Hub ids pass.
    """
    if lora is None:
        if lora_scale != 1:
            warn_no_effect("lora_scale", "there is no LoRA")
    elif not is_hub_id(lora):
        lora_layers(lora_file(lora), lora)


def lora_file(lora: str) -> Path:
    """The LoRA's file: itself, the one in the folder, or that of the Hub, which is downloaded."""
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
        commit = hub_commit(lora, None)
        with one_at_a_time(lora):
            try:
                return Path(hub.hf_hub_download(lora, LORA_FILE, revision=commit))
            except RemoteEntryNotFoundError:
                names = hub.list_repo_files(lora, revision=commit)
                files = [name for name in names if name.endswith(".safetensors")]
                if len(files) == 1:
                    return Path(hub.hf_hub_download(lora, files[0], revision=commit))
    except Exception as error:  # of many kinds, by the network
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


def scaled_by_alpha(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with alpha / rank multiplied into each layer's up factor, where the layer has an alpha.

    A layer without an `.alpha` tensor keeps its strength: its alpha is its rank.
    """
    scaled = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    for key in tensors.keys() - scaled.keys():
        layer = key.removesuffix(".alpha")
        for down, up in FACTORS:
            if layer + down in tensors and layer + up in tensors:
                rank = len(tensors[layer + down])
                scaled[layer + up] = tensors[layer + up].float() * (tensors[key].item() / rank)
    return scaled


def fuse_lora(pipe: Any, lora: str, scale: float) -> None:
    """Add the LoRA, times `scale`, to the weights: afterwards the parts are of the classes that they were.

    Its factors are kept as `pipe.lora_factors`, with which `lora_switch.without_lora` switches it off.
    Its strength is that of its `.alpha` tensors, or else of the alpha in its metadata, or else its rank.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import load_file

    path = lora_file(lora)
    layers = lora_layers(path, lora)
    tensors = load_file(path)
    alphas = any(key.endswith(".alpha") for key in tensors)
    try:
        with no_warnings():
            pipe.load_lora_weights(
                scaled_by_alpha(tensors) if alphas else path.parent, weight_name=path.name,
                use_safetensors=True, unet_config=pipe.unet.config,
            )  # fmt: skip  # the config: to translate original names of blocks too
            modules = [*pipe.unet.modules(), *pipe.text_encoder.modules()]
            matched = sum(isinstance(module, BaseTunerLayer) for module in modules)
            if matched < layers:
                raise ValueError(f"{layers - matched} of its {layers} layers have no counterpart")
            factors = factors_of(pipe, scale)
            pipe.fuse_lora(lora_scale=scale)
            pipe.unload_lora_weights()
            pipe.lora_factors = {
                getattr(pipe, part).get_submodule(name): pair for (part, name), pair in factors.items()
            }
    except Exception as error:  # of many kinds, where names or shapes are not those of the model
        raise ValueError(
            f"the LoRA {lora!r} does not fit this model ({one_line(error)}): give one of its architecture"
        ) from error
