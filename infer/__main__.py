"""Generate with a mitigation, and measure what it does.

  python -m infer predict --config configs/infer/demo_predict.yaml --mitigation stp
  python -m infer predict --config configs/infer/demo_predict.yaml --mitigation StaticTransition \\
    --mitigation.timestep 500
  python -m infer predict --model.pipeline outputs/demo/finetune/pipeline --out outputs/mine \\
    --prompt "a red car" --prompt "a blue dog" --data.samples_per_prompt 4
  python -m infer compare --config configs/infer/demo.yaml
  python -m infer compare --config configs/infer/demo.yaml --mitigations none,stp --out outputs/x
  python -m infer report  outputs/demo/compare
  python -m infer basin   --config configs/infer/basin.yaml
  python -m infer calibrate --run outputs/demo/finetune --mitigation dtp --out outputs/demo/gated_dtp.yaml \\
    --ordinary data/emoji/shards/noto-00000.tar.gz

--mitigation takes the name of a preset in configs/mitigation, the path of a YAML file, or a class with its
options. Every command takes --help; predict and compare take --print_config. Run one again and only what is
missing is made. --debug shows the traceback behind an error.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

PRESETS = Path(__file__).parent.parent / "configs" / "mitigation"


def preset_path(name: str) -> Path | None:
    """The YAML file that a preset's name or a path means; None for anything else (a class name)."""
    for path in (PRESETS / f"{name}.yaml", Path(name)):
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            return path
    return None


def unknown(name: str) -> ValueError:
    names = [str(path.relative_to(PRESETS).with_suffix("")) for path in PRESETS.rglob("*.yaml")]
    known = ", ".join(sorted(names, key=lambda name: (name.count("/"), name)))
    return ValueError(f"no mitigation preset {name!r}; there are {known}, or give the path of a YAML file")


def changed(args: list[str], option: str, change: Callable[[str], str], new: str | None = None) -> list[str]:
    """The arguments with `option value` or `option=value` as `new=change(value)`; `new`: `option` again."""
    out, arguments = [], iter(args)
    for arg in arguments:
        name, equals, value = arg.partition("=")
        if name == option:
            arg = f"{new or option}={change(value if equals else next(arguments, ''))}"
        out.append(arg)
    return out


def as_item(text: str) -> str:
    """A list of one text for the command line's parser, to which nothing in the text has a meaning."""
    import yaml

    return yaml.safe_dump([text], default_flow_style=True, default_style='"', width=float("inf"))


def as_list(value: str) -> str:
    """`[a,b]` of `a,b`; commas within braces stand in the name of one item."""
    return value if value.startswith("[") else json.dumps(re.split(r",(?![^{]*})", value))


def class_names() -> list[str]:
    from callbacks.all import MITIGATIONS

    return [kind.__name__ for kind in MITIGATIONS]


def load_mitigation(name: str):
    """The mitigation of a preset; ValueError that lists the presets for an unknown one."""
    import jsonargparse

    import callbacks.all  # noqa: F401  (class names without their module)
    from callbacks.mitigation import Mitigation

    path = preset_path(name)
    if path is None:
        raise unknown(name)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Mitigation, "mitigation", required=True)
    try:
        parsed = parser.parse_args([f"--mitigation={path}"])
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{path}: {error}") from error
    return parser.instantiate(parsed).mitigation


def predict(args: list[str]) -> None:
    """Run the predict loop into a run folder. What the folder holds already is not made again."""
    from lightning.pytorch.cli import LightningCLI

    import callbacks.all  # noqa: F401
    from callbacks.mitigation import Mitigation
    from callbacks.writer import SampleWriter
    from infer.generate import Generate, PromptData
    from infer.runfolder import told

    calm_lightning()
    presets: list[str | None] = []  # of each --mitigation; a class has none

    def file_of(value: str) -> str:
        path = preset_path(value)
        if path is None and "." not in value and value not in class_names():
            raise unknown(value)
        presets.append(path and path.stem)
        return str(path or value)

    args = changed(args, "--mitigation", file_of)
    if presets and presets[-1]:  # of another mitigation in --config no option stays
        last = max(place for place, arg in enumerate(args) if arg.startswith("--mitigation="))
        args.insert(last, "--mitigation=NoMitigation")
    args = changed(args, "--prompt", as_item, "--data.prompt+")

    class PredictCLI(LightningCLI):
        def add_arguments_to_parser(self, parser) -> None:
            parser.add_argument("--out", type=str, required=True, help="run folder, such as outputs/stp")
            parser.add_subclass_arguments(
                Mitigation,
                "mitigation",
                required=False,
                default={"class_path": "callbacks.mitigation.NoMitigation"},
                help="a preset of configs/mitigation by its name, a YAML file, or a class, whose options "
                "then follow as --mitigation.OPTION; --mitigation.help CLASS explains them",
            )

        def instantiate_trainer(self, **kwargs):
            mitigation = self.config_init.mitigation
            name = (presets and presets[-1]) or type(mitigation).__name__
            writer = SampleWriter("none" if name == "NoMitigation" else name)
            return super().instantiate_trainer(
                **trainer_options(
                    self.config.out, mitigation, writer, self.config_init.trainer.callbacks or []
                )
            )

    cli = PredictCLI(
        Generate,
        PromptData,
        run=False,
        args=args,
        save_config_callback=None,
        seed_everything_default=False,
        auto_configure_optimizers=False,
        parser_kwargs={
            "prog": "python -m infer predict",
            "usage": "%(prog)s [--config FILE] [--mitigation PRESET] [--out FOLDER] [options]",
            "description": predict.__doc__,
        },
    )
    cli.trainer.predict(cli.model, cli.datamodule, return_predictions=False)
    if cli.trainer.is_global_zero:
        print(told(Path(cli.config.out)))
        print(f"images: {cli.config.out}/images, rows: {cli.config.out}/samples.parquet")


def calm_lightning() -> None:
    """Without its hints and notes, which Lightning switches on when it is imported."""
    import logging
    import warnings

    import lightning.pytorch  # noqa: F401

    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def trainer_options(out: str, mitigation, writer, own: list) -> dict:
    """What every predict trainer has: the run folder, the mitigation, the writer, a bar."""
    from lightning.pytorch.callbacks import TQDMProgressBar

    return {
        "default_root_dir": out,
        "logger": False,
        "callbacks": [*own, mitigation, writer, TQDMProgressBar(refresh_rate=1)],
    }


def options_of(kind: type, command: Callable, args: list[str], lists: tuple[str, ...] = ()):
    """The data class `kind` from a command's arguments; each of `lists` takes `a,b` for `[a,b]`."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=f"python -m infer {command.__name__}",
        usage="%(prog)s [--config FILE] [--run FOLDER] [--out FOLDER] [options]",
        description=command.__doc__,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    parser.add_class_arguments(kind, None, fail_untyped=True)
    for option in lists:
        args = changed(args, option, as_list)
    options = vars(parser.parse_args(args))
    return kind(**{name: value for name, value in options.items() if name in kind.__dataclass_fields__})


def compare(args: list[str]) -> None:
    """Run or reuse one predict job per mitigation, score them, write table and report."""
    import lightning.pytorch as pl
    from rich.console import Console

    from callbacks.mitigation import NoMitigation
    from callbacks.writer import SampleWriter
    from infer.compare import Comparison, finish, terminal_table
    from infer.report import write_report
    from infer.runfolder import told

    calm_lightning()
    comparison = options_of(Comparison, compare, args, lists=("--mitigations", "--training"))
    jobs = [(Path(name).stem, comparison.pipeline, load_mitigation(name)) for name in comparison.mitigations]
    if comparison.base_pipeline:
        jobs.append(("base_model", comparison.base_pipeline, NoMitigation()))
    folders, module = {}, comparison.module(comparison.pipeline)
    module.load()
    for _, pipeline, mitigation in jobs:  # before the first of them runs
        if pipeline == module.source:
            module.check([mitigation])
    for name, pipeline, mitigation in jobs:
        if module.source != pipeline:  # load a model once
            module = comparison.module(pipeline)
        folder, data = Path(comparison.out) / name, comparison.data()
        options = trainer_options(str(folder), mitigation, SampleWriter(name), [])
        trainer = pl.Trainer(accelerator=comparison.accelerator, devices=comparison.devices, **options)
        if trainer.is_global_zero:
            print(f"{name}:", flush=True)
        trainer.predict(module, data, return_predictions=False)
        if trainer.is_global_zero:
            print(told(folder), flush=True)
        folders[name] = folder
    if trainer.is_global_zero:
        table = finish(comparison, folders, module.side_pixels)
        Console().print(terminal_table(table))
        print(f"report: {write_report(Path(comparison.out)).resolve()}")


def calibrate(args: list[str]) -> None:
    """Find the gate of a mitigation from ordinary prompts at a stated false-positive rate; write a preset."""
    import yaml

    from infer.calibrate import Calibration
    from infer.runfolder import write_atomically

    calibration = options_of(Calibration, calibrate, args)
    preset = load_mitigation(calibration.mitigation).identity()
    if "gate" not in preset["init_args"]:
        raise ValueError(f"{calibration.mitigation!r} is a {preset['class_path']}, which has no gate")
    found = calibration.measure()
    preset["init_args"]["gate"] = found["gate"]
    about = "\n".join(f"# {name}: {value:g}" for name, value in found.items())
    header = (
        f"# python -m infer predict --mitigation {calibration.out}\n"
        f"# Gate of {calibration.mitigation} at a false-positive rate of "
        f"{calibration.false_positive_rate:g}, from {calibration.ordinary!r}\n{about}\n"
    )
    text = header + yaml.safe_dump(preset, sort_keys=False)
    out = Path(calibration.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda part: part.write_text(text))
    print(f"{text}preset: {out}")


def report(args: list[str]) -> None:
    """Write the page of a comparison folder again."""
    from infer.report import write_report

    if len(args) != 1 or args[0].startswith("-"):
        raise ValueError("usage: python -m infer report COMPARISON_FOLDER")
    print(f"report: {write_report(Path(args[0])).resolve()}")


def basin(args: list[str]) -> None:
    """Draw where a model's attraction basin ends: curves, and images for full guidance on [t, 0]."""
    from rich.console import Console

    from callbacks.dynamic_transition import DynamicTransition
    from callbacks.static_transition import StaticTransition
    from infer import basin_numbers, basin_plots
    from infer.basin import SPACES, Basin
    from infer.basin_runs import explore

    options = options_of(Basin, basin, args, lists=("--points", "--training"))
    found = explore(options, StaticTransition, {space: DynamicTransition(watch=space) for space in SPACES})
    paths = [*basin_plots.save(found), basin_numbers.write_numbers(found)]
    Console().print(basin_numbers.point_table(found), basin_numbers.firing_table(found))
    print(basin_numbers.told(found))
    print(f"pictures and numbers: {', '.join(map(str, paths))}")


COMMANDS = {"predict": predict, "compare": compare, "calibrate": calibrate, "report": report, "basin": basin}


def main(args: list[str]) -> int:
    from data.command_line import run

    return run("python -m infer", __doc__, COMMANDS, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
