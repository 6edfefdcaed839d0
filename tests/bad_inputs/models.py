# ruff: noqa: E501  (a row a line)
"""Files of weights, LoRAs, indices and mitigations."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from callbacks.mitigations.presets import load_mitigation
from infer.index.descriptor_index import FORMAT, DescriptorIndex
from infer.metrics.similarity import CORRELATION
from infer.models.lora import check_lora
from infer.models.pipeline import check_pipeline
from tests.bad_inputs import Bad, Files, Group
from tests.bad_inputs.prompts import NESTED
from train.plan.sizes import read_configs

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PICKLE = b"\x80\x04cos\nsystem\n(Vecho\ntR."


def tensors(*names: str) -> Files:
    return lambda folder: save_file({name: torch.ones(1) for name in names}, folder / "m.safetensors")


def folder(**files: bytes | str) -> dict[str, bytes | str]:
    """A diffusers folder `m`, whose parts are empty, and these files; `__` stands for a slash."""
    parts = {f"m/{part}/config.json": "{}" for part in PARTS} | {"m/model_index.json": "{}"}
    return parts | {f"m/{name.replace('__', '/')}.json": content for name, content in files.items()}


MODELS = Group("Models", "python -m infer predict --model.pipeline {}", check_pipeline, [
    Bad("a folder that is not there", {}, "no/such/model", "error: no model folder 'no/such/model': give a diffusers pipeline folder, ..."),
    Bad("a file that is not there", {}, "m.safetensors", "error: no file 'm.safetensors': ..."),
    Bad("a pickle", {"m.ckpt": PICKLE}, "m.ckpt", "error: 'm.ckpt' is a pickle, which may run code when read: convert it to .safetensors"),
    Bad("a folder of pickles", folder() | {"m/unet/diffusion_pytorch_model.bin": PICKLE}, "./m",
        "error: m/unet has no .safetensors, only diffusion_pytorch_model.bin, a pickle, which may run code: convert it"),
    Bad("a folder without a part", {"m/model_index.json": "{}", "m/unet/a.json": "{}"}, "./m",
        "error: './m' is not a whole diffusers pipeline: it lacks vae, text_encoder, tokenizer, scheduler"),
    Bad("nothing", {"m.safetensors": b""}, "m.safetensors", "error: 'm.safetensors' is not a whole safetensors file (...): download or convert it again"),
    Bad("a web page", {"m.safetensors": b"<html>404</html>"}, "m.safetensors", "error: 'm.safetensors' is not a whole safetensors file (...): ..."),
    Bad("a header of 2^62 bytes", {"m.safetensors": struct.pack("<Q", 2**62) + b"{}"}, "m.safetensors", "error: 'm.safetensors' is not a whole ..."),
    Bad("a pickle with another name", {"m.safetensors": PICKLE}, "m.safetensors", "error: 'm.safetensors' is not a whole ..."),
    Bad("other weights", tensors("a"), "m.safetensors", "error: 'm.safetensors' is not a whole Stable Diffusion checkpoint in the original layout: it lacks the UNet ..."),
    Bad("Stable Diffusion XL", tensors("conditioner.a"), "m.safetensors", "error: 'm.safetensors' is a Stable Diffusion XL checkpoint: ..."),
])  # fmt: skip
CONFIGS = Group("Configs of models", "python -m train plan --model.pipeline {}", read_configs, [
    Bad("half a config", folder(unet__config="{", tokenizer__tokenizer_config="{}", scheduler__scheduler_config="{}"), "./m",
        "error: m/unet/config.json is no JSON, or empty: download or export the model again"),
    Bad("a part without config", folder(), "./m", "error: './m' is not a whole diffusers pipeline: no m/tokenizer/tokenizer_config.json, ..."),
])  # fmt: skip
LORAS = Group("LoRAs", "python -m infer predict --model.lora {}", check_lora, [
    Bad("a pickle", {"m.pt": PICKLE}, "m.pt", "error: 'm.pt' is a pickle, ..."),
    Bad("other weights", tensors("a"), "m.safetensors", "error: 'm.safetensors' is no LoRA for Stable Diffusion: none of its layers is ..."),
    Bad("a LoHa", tensors("lora_unet_x.hada_w1_a"), "m.safetensors", "error: 'm.safetensors' is a DoRA, LoHa or LoKr: give a plain LoRA"),
    Bad("a folder without one", {"m/x.bin": PICKLE}, "./m", "error: no LoRA './m': give a .safetensors file, ..."),
])  # fmt: skip


# An index


def index(what: str, why: str, embeddings: torch.Tensor | None = None, **about: str) -> Bad:
    """Of two images, whose metadata or embeddings are wrong."""
    usual = {"format": FORMAT, "descriptor": CORRELATION, "resolution": "16"}
    unit = torch.eye(2) if embeddings is None else embeddings

    def write(folder: Path) -> None:
        save_file({"embeddings": unit}, folder / "i.safetensors", metadata=usual | about)

    line = f"error: 'i.safetensors' is no {why}: build one with: python -m infer index ..."
    return Bad(what, write, "i.safetensors", line)


INDICES = Group("Indices of the guard", "python -m infer predict --guard.index {}", DescriptorIndex.load, [
    Bad("a file that is not there", {}, "i.safetensors", "error: no index 'i.safetensors': build one with: ..."),
    Bad("a pickle", {"i.safetensors": PICKLE}, "i.safetensors", "error: 'i.safetensors' is no whole index (...): ..."),
    index("another version", "index of this version", format="x"),
    index("an unknown descriptor", "whole index (no descriptor is called 'x')", descriptor="x"),
    index("a resolution that is no number", "whole index (...)", resolution="x"),
    index("ids cut", "whole index (...)", ids='["a", '),
    index("too few ids", "whole index (it has 1 ids and 2 embeddings)", ids='["a"]'),
    index("numbers that are none", "whole index (its embeddings are not of unit length)", torch.full((2, 2), torch.nan)),
    index("one row", "whole index (...)", torch.ones(2)),
])  # fmt: skip


# Mitigations


def preset(what: str, content: bytes | str, why: str) -> Bad:
    return Bad(what, {"p.yaml": content}, "p.yaml", f"error: p.yaml{why}")


def static(**options: Any) -> str:
    return json.dumps({"class_path": "StaticTransition", "init_args": options})


INNER = {"class_path": "StaticTransition", "init_args": {"timestp": 3}}
load: Callable[[str], Any] = load_mitigation
PRESETS = Group("Files of mitigations", "python -m infer predict --mitigation {}", load, [
    Bad("a file that is not there", {}, "p.yaml", "error: no mitigation preset 'p.yaml': ..."),
    preset("an unknown option", static(timestp=3), ": Option 'timestp' is not accepted"),
    preset("a word for a number", static(timestep="many"), ": timestep: Not of type NonNegativeFloat: ..."),
    preset("a number that is none", "class_path: StaticTransition\ninit_args: {guidance_before: .nan}", ": guidance_before: Not of type FiniteFloat: ..."),
    preset("a null", static(timestep=None), ": timestep: must not be null"),
    preset("an option beside init_args", "class_path: StaticTransition\ntimestep: 3", ": give a class_path, and its options in init_args"),
    preset("an unknown class", "class_path: StaticTransitin", ": no class StaticTransitin"),
    preset("a program", "class_path: os.system", ": Import path os.system does not correspond to a subclass of Mitigation"),
    preset("an unknown option within", json.dumps({"class_path": "Detour", "init_args": {"transition": INNER}}), ": ...transition: Option 'timestp' is not accepted"),
    preset("a list", "- StaticTransition", ": give a class_path, and its options in init_args"),
    preset("half a file", "class_path: [\n", " is no YAML: ..."),
    preset("a Python object", "!!python/object/apply:os.system [ls]", " is no YAML: could not determine a constructor for the tag ..."),
    preset("brackets without end", NESTED, " is no YAML: maximum recursion depth exceeded..."),
    preset("another encoding", b"\xff\xfe\xfa", " is no YAML: ..."),
])  # fmt: skip
