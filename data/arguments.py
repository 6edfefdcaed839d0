"""What the commands make of their arguments: presets by name, prompts to the letter, errors in one line."""

import difflib
import inspect
import json
import pydoc
import re
import textwrap
from argparse import ArgumentError
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml

yaml.SafeDumper.add_multi_representer(
    int, lambda dumper, value: dumper.represent_int(int(value))
)  # PositiveInt
yaml.SafeDumper.add_multi_representer(float, lambda dumper, value: dumper.represent_float(float(value)))
PRESETS = Path(__file__).parent.parent / "configs" / "mitigation"


def preset_path(name: str) -> Path | None:
    """The YAML file that a preset's name or a path means; None for anything else (a class name)."""
    for path in (PRESETS / f"{name}.yaml", Path(name)):
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            return path
    return None


def preset_names() -> str:
    names = [str(path.relative_to(PRESETS).with_suffix("")) for path in PRESETS.rglob("*.yaml")]
    return ", ".join(sorted(names, key=lambda name: (name.count("/"), name)))


def unknown(name: str) -> ValueError:
    return ValueError(
        f"no mitigation preset {name!r}; there are {preset_names()}, or give the path of a YAML file"
    )


def file_of(value: str, classes: Iterable[str]) -> str:
    """The path of a preset's file, or the class that the value is; ValueError for what is neither."""
    if path := preset_path(value):
        return str(path)
    is_class = value in classes or value.startswith("{")  # by its name, or with its options
    if not is_class and ("." not in value or value.endswith((".yaml", ".yml"))):
        raise unknown(value)
    return value


def changed(args: list[str], option: str, change: Callable[[str], str], new: str | None = None) -> list[str]:
    """The arguments with `option value` or `option=value` as `new=change(value)`; `new`: `option` again."""
    out, arguments = [], iter(args)
    for arg in arguments:
        name, equals, value = arg.partition("=")
        if name == option:
            arg = f"{new or option}={change(value if equals else next(arguments, ''))}"
        out.append(arg)
    return out


def with_files(args: list[str], option: str, classes: Iterable[str], other: str) -> list[str]:
    """The arguments with `option PRESET` as `option=FILE`.

    Before the last file stands the class `other`: so nothing stays of a mitigation of the same class that
    was given before, such as in --config. ValueError for an option of its that comes before any of it.
    """
    args = changed(args, option, lambda value: file_of(value, classes))
    places = [place for place, arg in enumerate(args) if arg.startswith(f"{option}=")]
    for arg in args[: places[0]] if places else []:
        if arg.startswith(f"{option}."):
            raise ValueError(f"{arg.partition('=')[0]} stands before {option}: options come after it")
    if places and args[places[-1]].endswith((".yaml", ".yml")):
        args.insert(places[-1], f"{option}={other}")
    return args


def as_item(text: str) -> str:
    """A list of one text for the command line's parser, to which nothing in the text has a meaning."""
    return yaml.safe_dump([text], default_flow_style=True, default_style='"', width=float("inf"))


def with_prompts(args: list[str]) -> list[str]:
    """The arguments with all of `--prompt TEXT` as items of a list."""
    return changed(args, "--prompt", as_item, "--prompt+")


def as_list(value: str) -> str:
    """`[a,b]` of `a,b`; commas within braces stand in the name of one item."""
    return value if value.startswith("[") else json.dumps(re.split(r",(?![^{]*})", value))


def with_sweep(args: list[str]) -> list[str]:
    """The arguments with all of `--sweep stp.timestep=400,500` in one mapping, as the parser takes it."""
    sweep: dict[str, dict[str, list[Any]]] = {}

    def collected(value: str) -> str:
        found = re.fullmatch(r"(.+?\.ya?ml|[^.{]+)\.([^=]+)=(.+)", value)
        if value.startswith("{"):
            return value
        if not found:
            raise ValueError(f"--sweep {value!r}: give it as PRESET.OPTION=VALUE,VALUE")
        preset, option, values = found.groups()
        sweep.setdefault(preset, {})[option] = [yaml.safe_load(text) for text in values.split(",")]
        return json.dumps(sweep)

    return changed(args, "--sweep", collected)


def command_parser(command: Callable, *kinds: type):
    """A command's parser, with the options of these data classes, and --config."""
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


def options_of(kinds: list[type], command: Callable, args: list[str], lists: tuple[str, ...] = ()) -> list:
    """These data classes from a command's arguments; each of `lists` takes `a,b` for `[a,b]`."""
    for option in lists:
        args = changed(args, option, as_list)
    parser = command_parser(command, *kinds)
    return built(kinds, parser.instantiate(parse(parser, args)))


def built(kinds: list[type], parsed: Any) -> list:
    """The data classes of parsed options."""
    values = vars(parsed)
    return [kind(**{name: values[name] for name in kind.__dataclass_fields__}) for kind in kinds]


def parse(parser, args: list[str], classes: Iterable[str] = ()):
    """The parsed arguments; ArgumentError in one line. `classes`: of a mitigation's parser, to name in it."""
    try:
        parsed = parser.parse_args(args)
        if classes:
            if parsed.mitigation is None:
                raise ArgumentError(None, 'Parser key "mitigation": Expected a Mitigation. Got value: null')
            check_nulls(parsed.mitigation, Any, "mitigation")
        return parsed
    except ArgumentError as error:
        raise ArgumentError(None, one_line(str(error), parser, classes)) from error


def check_nulls(value: Any, wanted: Any, name: str) -> None:
    """ArgumentError for null where it is not wanted, within a class too: the parser lets it through there."""
    if value is None and not takes_null(wanted):
        raise ArgumentError(None, f'Parser key "{name}": Expected a {wanted}. Got value: null')
    if options := hasattr(value, "class_path") and value.get("init_args"):
        parameters = inspect.signature(pydoc.locate(value.class_path)).parameters
        for option, inner in vars(options).items():
            if option in parameters:
                check_nulls(inner, parameters[option].annotation, f"{name}.{option}")


def takes_null(annotation: Any) -> bool:
    """Whatever is no type, or is not looked up, does."""
    untyped = annotation in (inspect.Parameter.empty, Any) or isinstance(annotation, str)
    return untyped or NoneType in get_args(annotation)


def one_line(message: str, parser, classes: Iterable[str] = ()) -> str:
    """What is useful in an error of jsonargparse, which tells all that it tried."""
    keys = ""
    for key in re.findall(
        r'Parser key "([^"]+)":', message
    ):  # of a class's options from there on, else whole
        keys = key if not keys or key.startswith(f"{keys}.") else f"{keys}.{key}"
    option, more = f"--{keys}: " if keys else "", f"(see {parser.prog} --help)"
    if found := re.search(r"unrecognized arguments: ([^\s=]+)", message):
        if not found[1].startswith("-"):
            return f"{found[1]!r} belongs to no option {more}"
        command = parser.prog.split()[-1]
        return f"{found[1]} is no option of {command}{meant(found[1], parser) or f' {more}'}"
    if found := re.search(r"Group '(.+)' does not accept option '(.+)'", message):
        return f"Option '{found[1]}.{found[2]}' is not accepted{meant(f'{found[1]}.{found[2]}', parser)}"
    if found := re.search(r"Option '(.+)' is not accepted", message):
        kinds = re.findall(r"class_path '(.+)':", message[: found.start()])
        if not kinds:
            return f"{option}{found[0]}{meant(found[1], parser)}"
        if found[1] == "class_path":
            return f"{option}beside class_path stand options within init_args, and nothing else"
        known = ", ".join(inspect.signature(pydoc.locate(kinds[-1])).parameters) or "no options"
        return f"{option}{found[0]}: {kinds[-1].rpartition('.')[2]} has {known}"
    if found := re.search(r"arguments are required: (.*)", message):
        if kinds := re.findall(r"class_path '(.+)':", message):
            return f"{option}{kinds[-1].rpartition('.')[2]} needs {found[1]}"
        return f"give {' and '.join(f'--{name}' for name in found[1].split(', '))} {more}"
    if found := re.search(r"Expected a dot import path string: (.*)", message):
        if found[1] in classes:
            return f"{option}{found[1]} is no {keys.rpartition('.')[2]}"
        there = f"; there are {', '.join(classes)}" if keys.startswith("mitigation") else ""
        return f"{option}no class {found[1]!r}{there}"
    if found := re.search(r"Not a valid subclass of (\w+)", message):
        return f"{option}it is no {found[1]}: give a class_path, and options in init_args"
    if places := re.findall(r"line [0-9]+, column [0-9]+", message):
        file = re.search(r"sub-config file (.+?):", message)
        return f"{option}{file[1] if file else 'a config file'} is no YAML ({places[-1]})"
    if found := re.search(r"(?s)(.*?)(?:Given|Got) value: (.*?)$", message, re.MULTILINE):
        kinds = re.findall(
            r"(?:Expected an?|Not of type) (?!path but)(.+?)(?:\. |:.*)?$", found[1], re.MULTILINE
        )
        names = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*?)\]", r"\1\2", " or ".join(kinds))
        if names:
            value = textwrap.shorten(found[2], 60)
            return f"{option}expected {names.replace('NoneType', 'null')}, not {value}"
    reason = re.split(r'Parser key "[^"]+":', message)[-1].removeprefix("argument ")
    return option + textwrap.shorten(reason, 300)


def meant(name: str, parser) -> str:
    """A question for the option that an unknown one is near to."""
    options = parser.get_defaults().keys(branches=True)
    near = difflib.get_close_matches(name.lstrip("-"), options, n=1)
    return f": did you mean --{near[0]}?" if near else ""
