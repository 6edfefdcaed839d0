"""Command lines: data classes as options, prompts and lists as people type them, errors in one line."""

import json
import re
import textwrap
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

import yaml

from data.cli import reasons
from data.option_names import no_option

# the parser's numbers, such as PositiveInt, are numbers in YAML
yaml.SafeDumper.add_multi_representer(int, lambda dumper, value: dumper.represent_int(int(value)))
yaml.SafeDumper.add_multi_representer(float, lambda dumper, value: dumper.represent_float(float(value)))
NUMBER = re.compile(r"-(\d|\.\d|inf\b|nan\b).*")


def changed(args: list[str], option: str, change: Callable[[str], str], new: str | None = None) -> list[str]:
    """The arguments with `option value` or `option=value` as `new=change(value)`; `new`: `option` again."""
    out, arguments = [], iter(args)
    for arg in arguments:
        name, equals, value = arg.partition("=")
        if name == option:
            arg = f"{new or option}={change(value if equals else next(arguments, ''))}"
        out.append(arg)
    return out


def values_of(args: list[str], option: str) -> list[str]:
    """What stands after each `option`."""
    values: list[str] = []
    changed(args, option, lambda value: values.append(value) or value)
    return values


def with_prompts(args: list[str]) -> list[str]:
    """The arguments with each `--prompt TEXT` as an item of a list, quoted for YAML."""

    def as_item(text: str) -> str:
        return yaml.safe_dump([text], default_flow_style=True, default_style='"', width=float("inf"))

    return changed(args, "--prompt", as_item, "--prompt+")


def as_list(value: str) -> str:
    """`[a,b]` of `a,b`; commas within braces belong to the name of one item."""
    return value if value.startswith("[") or value == "null" else json.dumps(re.split(r",(?![^{]*})", value))


def with_sweep(args: list[str]) -> list[str]:
    """The arguments with all of `--sweep stp.timestep=400,500` in one mapping, as the parser takes it."""
    sweep: dict[str, dict[str, list[Any]]] = {}

    def collected(value: str) -> str:
        parts = re.fullmatch(r"(.+?\.ya?ml|[^.{]+)\.([^=]+)=(.+)", value)
        if value.startswith("{"):
            return value
        if not parts:
            raise ValueError(f"--sweep {value!r}: give it as PRESET.OPTION=VALUE,VALUE")
        preset, option, values = parts.groups()
        sweep.setdefault(preset, {})[option] = [yaml.safe_load(text) for text in values.split(",")]
        return json.dumps(sweep)

    return changed(args, "--sweep", collected)


def with_negative_numbers(args: list[str]) -> list[str]:
    """The arguments with `--option -1e3` as `--option=-1e3`: argparse takes -1e3 for an option."""
    out: list[str] = []
    for arg in args:
        if NUMBER.fullmatch(arg) and out and out[-1].startswith("--") and "=" not in out[-1]:
            arg = f"{out.pop()}={arg}"
        out.append(arg)
    return out


def command_parser(command: Callable, *kinds: type):
    """The parser of `python -m infer <command>`, with the options of these data classes, and --config."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=f"python -m infer {command.__name__}",
        usage="%(prog)s [--config FILE] [--run FOLDER] [--out FOLDER] [options]",
        description=command.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", action="config", help="YAML file with any of the options")
    for kind in kinds:
        parser.add_class_arguments(kind, None, fail_untyped=True)
    return parser


def options_of(kinds: list[type], command: Callable, args: list[str]) -> list:
    """These data classes from a command's arguments; their lists take `a,b` for `[a,b]`."""
    for option in (option for kind in kinds for option in fields(kind)):
        if str(option.type).startswith("list"):
            args = changed(args, f"--{option.name}", as_list)
    parser = command_parser(command, *kinds)
    return built(kinds, parser.instantiate(parse(parser, args)))


def built(kinds: list[type], parsed: Any) -> list:
    """The data classes of parsed options."""
    values = vars(parsed)
    return [kind(**{option.name: values[option.name] for option in fields(kind)}) for kind in kinds]


def parse(parser, args: list[str]):
    """The parsed arguments; ArgumentError in one line."""
    counts_before_shares(parser)
    try:
        return parser.parse_args(with_negative_numbers(args))
    except ArgumentError as error:
        raise ArgumentError(None, one_line(str(error), parser)) from error


def counts_before_shares(parser) -> None:
    """Make `--trainer.limit_train_batches 1` one batch, not 1.0, which is all of them.

    Python has one object for Optional[int | float] and Optional[float | int]; which of both the trainer's
    options have depends on what was imported before.
    """
    for action in parser._actions:
        if set(get_args(getattr(action, "_typehint", None))) == {int, float, type(None)}:
            action._typehint = int | float | None


def one_line(message: str, parser) -> str:
    """The part of an error of jsonargparse that helps, with the option that an unknown one is near to."""
    unknown = re.search(
        r"unrecognized arguments: ([^\s=]+)|(?:Group '(.+)' does not accept o|O)ption '(.+)'", message
    )
    keys = ".".join(re.findall(r'Parser key "([^"]+)":', message))
    if unknown and not keys:
        name = unknown[1] or "--" + ".".join(filter(None, unknown.groups()[1:]))
        return no_option(name, parser.get_defaults().keys(branches=True), parser.prog)
    if position := re.search(r"line [0-9]+, column [0-9]+", message):
        file = re.search(r"sub-config file (.+?):", message)
        return f"{file[1] if file else 'a config file'} is no YAML ({position[0]})"
    text = reasons(message).removeprefix("argument ")
    return f"{f'--{keys}: ' if keys else ''}{textwrap.shorten(text, 300)}"
