"""How to use a mitigation: the command, and a few lines of Python."""

import inspect
import json
import shlex
from collections.abc import Sequence

from infer.denoising.hooks import GuidanceRule
from infer.models.weights import is_file_name
from infer.options import ModelOptions


def command(model: ModelOptions, preset: str) -> str:
    """The command that predicts with the mitigation: the same model and schedule."""
    words = ["python", "-m", "infer", "predict", *model.words(), "--mitigation", preset]
    return shlex.join([*words, "--prompts", "prompts.txt", "--out", "outputs/mitigated"])


def snippet(model: ModelOptions, rules: Sequence[GuidanceRule]) -> str:
    """Python that puts the mitigation into a stock pipeline."""
    kinds = {type(rule) for rule in rules}
    imports = sorted(f"from {kind.__module__} import {kind.__name__}" for kind in kinds)
    return "\n".join([
        "from diffusers import StableDiffusionPipeline",
        "from callbacks.adapters.stock import mitigate",
        *imports,
        *loading(model, ", ".join(map(constructor, rules))),
        f'image = pipe("PROMPT", num_inference_steps={model.num_inference_steps}, '
        f"guidance_scale={model.guidance_scale:g}).images[0]",
    ])  # fmt: skip


def loading(model: ModelOptions, rules: str) -> list[str]:
    """Lines that load the pipeline and mitigate it."""
    method = "from_single_file" if is_file_name(model.pipeline) else "from_pretrained"
    revision = f", revision={json.dumps(model.revision)}" if model.revision else ""
    pipe = f"StableDiffusionPipeline.{method}({json.dumps(model.pipeline)}{revision})"
    if not model.lora:
        return [f"pipe = mitigate({pipe}, {rules})"]
    return [
        f"pipe = {pipe}",
        f"pipe.load_lora_weights({json.dumps(model.lora)})",
        f"pipe.fuse_lora(lora_scale={model.lora_scale:g})",
        f"pipe = mitigate(pipe, {rules})",
    ]


def constructor(rule: GuidanceRule) -> str:
    """The call that makes the rule: arguments that are not its defaults."""
    usual = inspect.signature(type(rule)).parameters
    settings = rule.identity()["init_args"]
    given = [f"{name}={value!r}" for name, value in settings.items() if value != usual[name].default]
    return f"{type(rule).__name__}({', '.join(given)})"
