"""Mitigations by name: presets of configs/mitigation, YAML files, classes; and the label of what ran."""

import inspect
import json
import pydoc
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from callbacks.mitigations.attention.cross_attention import CrossAttentionMask
from callbacks.mitigations.attention.guard import GUARD
from callbacks.mitigations.base import Mitigation, NoMitigation
from callbacks.mitigations.detour import Detour
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.guidance.amg import AMG
from callbacks.mitigations.guidance.broken_memories import BrokenMemoriesMild, BrokenMemoriesStrong
from callbacks.mitigations.guidance.diffusers_guider import DiffusersGuider
from callbacks.mitigations.guidance.interval import GuidanceInterval
from callbacks.mitigations.guidance.mambo_g import MaMBoG
from callbacks.mitigations.guidance.schedule import GuidanceSchedule
from callbacks.mitigations.noise.divin import DivIn
from callbacks.mitigations.noise.noise_adjustment import NoiseAdjustment
from callbacks.mitigations.noise.noise_optimization import NoiseOptimization
from callbacks.mitigations.noise.sharpness_aware_noise import SharpnessAwareNoise
from callbacks.mitigations.preset_files import FOLDER, names_in, preset_path, read_preset
from callbacks.mitigations.prompts.cads import CADS
from callbacks.mitigations.prompts.embedding_noise import EmbeddingNoise
from callbacks.mitigations.prompts.embedding_optimization import EmbeddingOptimization
from callbacks.mitigations.prompts.pads import Pads
from callbacks.mitigations.prompts.prompt_edit import PromptEdit
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from data.arguments import changed, parse, values_of
from data.cli import as_users

MITIGATIONS = (
    NoMitigation, StaticTransition, DynamicTransition, TwoPassTransition, Detour, PromptEdit, EmbeddingNoise,
    EmbeddingOptimization, CrossAttentionMask, NoiseAdjustment, NoiseOptimization, SharpnessAwareNoise,
    AMG, GUARD, DivIn, Pads, BrokenMemoriesMild, BrokenMemoriesStrong,
    GuidanceInterval, GuidanceSchedule, CADS, MaMBoG, DiffusersGuider,
)  # fmt: skip
CLASSES = {kind.__name__: kind for kind in MITIGATIONS}


def load_mitigation(name: str, options: dict[str, Any] | None = None) -> Mitigation:
    """The mitigation of a preset, with `options` instead of its own; ValueError that names the file."""
    preset = read_preset(name)
    given = preset | {"init_args": preset["init_args"] | (options or {})}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Mitigation, "mitigation", required=True)
    try:
        parsed = parse(parser, [f"--mitigation={json.dumps(given)}"])
    except ArgumentError as error:
        text = str(error).removeprefix("--mitigation").removeprefix(": ").removeprefix(".")
        raise ValueError(f"{preset_path(name)}: {text}") from error
    return instantiate(parser, parsed, str(preset_path(name))).mitigation


def load_mitigations(name: str, options: dict[str, Any] | None = None) -> list[Mitigation]:
    """Those of `somepalli_word+dtp`; the options are the last one's."""
    *first, last = names_in(name)
    return [*map(load_mitigation, first), load_mitigation(last, options)]


def instantiate(parser: Any, parsed: Any, source: str) -> Any:
    """The objects of parsed options with a `mitigation`; ValueError that names the source of its settings."""
    with as_users(source):
        check_nulls(parsed.mitigation)
        return parser.instantiate(parsed)


def check_nulls(mitigation: Any) -> None:
    """ValueError for a null where the setting has none: the parser takes it for each setting of a class."""
    if mitigation is None:
        return
    hints = get_type_hints(class_of(mitigation).__init__)
    for name, value in vars(mitigation.get("init_args") or Namespace()).items():
        hint = hints.get(name, Any)
        if value is None and hint is not Any and NoneType not in get_args(hint):
            raise ValueError(f"{name}: must not be null")
        if isinstance(value, Namespace):
            check_nulls(value)


def preset_given(args: list[str]) -> str | None:
    """The presets that the last `--mitigation` names, or without one the last `--config`; else None."""
    configs = map(mitigation_of, [*values_of(args, "-c"), *values_of(args, "--config")])
    given = [name for name in [*configs, *values_of(args, "--mitigation")] if isinstance(name, str)]
    return given[-1] if given and all(map(preset_path, names_in(given[-1]))) else None


def mitigation_of(config: str) -> Any:
    """What a file of options says of the mitigation; None for a file that the parser refuses."""
    try:
        content = yaml.safe_load(Path(config).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return content.get("mitigation") if isinstance(content, dict) else None


def with_presets(args: list[str], option: str, other: str) -> list[str]:
    """The arguments with each `option PRESET` as `option={class_path, init_args}`: the last of several.

    The class `other` is put before the last one: else settings of the same class in --config would stay.
    """

    def as_class(value: str) -> str:
        if len(names := names_in(value)) > 1:
            return json.dumps([read_preset(name) for name in names][-1])
        if preset_path(value) or not (value in CLASSES or "." in value or value.startswith("{")):
            return json.dumps(read_preset(value))
        if value.endswith((".yaml", ".yml")):
            read_preset(value)  # a file that is not there
        return value

    args = changed(args, option, as_class)
    last = max((n for n, arg in enumerate(args) if arg.startswith(f"{option}=")), default=None)
    return args if last is None else [*args[:last], f"{option}={other}", *args[last:]]


def label(mitigations: Sequence[Mitigation], preset: str | None = None) -> str:
    """What ran, as tables, folders and W&B call it: `stp`, `stp(timestep=600)`, `Detour(prompt=a map)`.

    A preset is its path within configs/mitigation, another file its stem; a mitigation without preset is its
    class. Settings that differ from the preset's, or from the class's defaults, follow in brackets. Several
    are joined by +; `none` means no mitigation at all.

    Args:
        mitigations: those that ran.
        preset: name or path of the last of them; `a+b` for the last two.
    """
    names: list[str | None] = [] if preset is None else names_in(preset)
    names = [None] * (len(mitigations) - len(names)) + names
    parts = [
        described(mitigation.identity(), name)
        for mitigation, name in zip(mitigations, names, strict=True)
        if not isinstance(mitigation, NoMitigation)
    ]
    return "+".join(parts) or "none"


def described(identity: dict[str, Any], preset: str | None = None) -> str:
    """The label of one mitigation, from its class and settings."""
    given = complete(identity)
    usual, name = complete({"class_path": given["class_path"]}), given["class_path"].rpartition(".")[2]
    if preset is not None and (own := complete(read_preset(preset)))["class_path"] == given["class_path"]:
        usual, path = own, preset_path(preset).resolve()
        shipped = path.is_relative_to(FOLDER)
        name = path.relative_to(FOLDER).with_suffix("").as_posix() if shipped else path.stem
    changes = [
        f"{key}={in_words(value)}"
        for key, value in given["init_args"].items()
        if value != usual["init_args"].get(key)
    ]
    return f"{name}({', '.join(changes)})" if changes else name


def complete(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity with the class's full path and its defaults, also of a mitigation among the settings."""
    kind, given, settings = class_of(identity), identity.get("init_args") or {}, {}
    for name, parameter in inspect.signature(kind).parameters.items():
        value = given.get(name, parameter.default)
        if value is not parameter.empty:
            settings[name] = complete(value) if is_identity(value) else value
    return {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": settings}


def class_of(identity: Any) -> type[Mitigation]:
    return CLASSES.get(identity["class_path"]) or pydoc.locate(identity["class_path"])


def is_identity(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def in_words(value: Any) -> str:
    """A setting in a label; whole numbers have no point."""
    if is_identity(value):
        return described(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
