"""Generate with a mitigation, and measure what it does.

  python -m infer predict --config configs/infer/demo_predict.yaml --mitigation stp
  python -m infer predict --config configs/infer/demo_predict.yaml --mitigation StaticTransition \\
    --mitigation.timestep 500
  python -m infer predict --model.pipeline outputs/demo/finetune/pipeline --out outputs/mine \\
    --prompt "a red car" --prompt "a blue dog" --samples_per_prompt 4
  python -m infer compare --config configs/infer/demo.yaml
  python -m infer compare --config configs/infer/demo.yaml --mitigations none,stp --out outputs/x
  python -m infer score   --runs outputs/stp,outputs/none --run outputs/demo/finetune --clip data/emoji/clip
  python -m infer report  outputs/demo/compare
  python -m infer basin   --config configs/infer/basin.yaml
  python -m infer detect  --config configs/infer/detect.yaml
  python -m infer calibrate --run outputs/demo/finetune --mitigation dtp --out outputs/demo/gated_dtp.yaml \\
    --ordinary data/emoji/shards/noto-00000.tar.gz

--mitigation takes the name of a preset in configs/mitigation, the path of a YAML file, or a class with its
options. Every command takes --help, and all but report --config and --print_config. Run predict or compare
again and only images that are missing are made; the others begin anew. --debug shows the traceback behind an
error.
"""

import json
import re
import sys
from argparse import ArgumentError
from pathlib import Path
from typing import Any

from data.arguments import (
    built,
    command_parser,
    options_of,
    parse,
    preset_names,
    preset_path,
    unknown,
    with_files,
    with_prompts,
    with_sweep,
)
from infer.commands import detect, report, score


def class_names() -> list[str]:
    from callbacks.mitigations.presets import MITIGATIONS

    return [kind.__name__ for kind in MITIGATIONS]


def load_mitigation(name: str, options: dict[str, Any] | None = None):
    """The mitigation of a preset, with options in place of its own; ValueError for none, naming all."""
    parser, parsed = read_mitigation(name, options)
    return parser.instantiate(parsed).mitigation


def read_mitigation(name: str, options: dict[str, Any] | None = None):
    """A parser, and what it makes of the preset."""
    import jsonargparse

    import callbacks.mitigations.presets  # noqa: F401  (class names without their module)
    from callbacks.mitigations.base import Mitigation

    path = preset_path(name)
    if path is None:
        raise unknown(name)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Mitigation, "mitigation", required=True)
    given = [f"--mitigation.{option}={json.dumps(value)}" for option, value in (options or {}).items()]
    try:
        return parser, parse(parser, [f"--mitigation={path}", *given], class_names())
    except ArgumentError as error:
        told = re.sub(r"^--mitigation(: |\.)", "", str(error)).removeprefix(f"{path} ")
        raise ValueError(f"{path}: {told}") from error


def predict(args: list[str]) -> None:
    """Generate images with a mitigation into a run folder. Images that the folder holds are kept."""
    import lightning.pytorch as pl

    import callbacks.mitigations.presets  # noqa: F401
    from callbacks.mitigations.base import Mitigation
    from callbacks.writer import SampleWriter
    from data.cli import as_users
    from infer.options import DenoiseOptions, PromptOptions
    from infer.predict.module import Generate
    from infer.predict.options import GenerateOptions
    from infer.predict.run_folder import told

    calm_lightning()
    args = with_files(args, "--mitigation", class_names(), other="NoMitigation")
    args = with_files(args, "--mitigation.transition", class_names(), other="TwoPassTransition")
    args = with_prompts(args)
    last = next((arg for arg in reversed(args) if arg.startswith("--mitigation=")), "")
    preset = Path(last).stem if last.endswith((".yaml", ".yml")) else None
    parser = command_parser(predict, PromptOptions)
    parser.add_subclass_arguments(
        Mitigation,
        "mitigation",
        required=False,
        default={"class_path": "callbacks.mitigations.base.NoMitigation"},
        help=f"a preset of configs/mitigation by its name ({preset_names()}), a YAML file, or a class, whose "
        "options then follow as --mitigation.OPTION; --mitigation.help CLASS has them",
    )
    parser.add_class_arguments(DenoiseOptions, None, fail_untyped=True, skip={"out", "run"})
    skip = {"default_root_dir", "precision"}  # --out and --model.dtype
    parser.add_class_arguments(
        pl.Trainer, "trainer", fail_untyped=False, instantiate=False, sub_configs=True, skip=skip
    )
    try:
        parsed = parse(parser, args, class_names())
    except ArgumentError as error:
        # a preset's file that is wrong is tried twice, and the second time taken for a loop
        loop = r"^(--(?:mitigation\.)?(\w+)): Config file loop detected: (.*) -> "
        if looped := re.search(loop, str(error)):
            kind = read_mitigation(looped[3])[1].mitigation.class_path.rpartition(".")[2]
            raise ArgumentError(None, f"{looped[1]}: {kind} is no {looped[2]}") from error
        raise
    init = parser.instantiate(parsed)
    [options] = built([GenerateOptions], init)
    name = preset or type(init.mitigation).__name__
    writer = SampleWriter("none" if name == "NoMitigation" else name)
    given = dict(vars(init.trainer))
    own = trainer_options(options.out, init.mitigation, writer, given.pop("callbacks") or [])
    with as_users("trainer"):
        trainer = pl.Trainer(**given | own)
    trainer.predict(Generate(options.model), options.data(), return_predictions=False)
    if trainer.is_global_zero:
        print(told(Path(options.out)))
        print(f"images: {options.out}/images, rows: {options.out}/samples.parquet")


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
        "use_distributed_sampler": False,  # the data shares itself out
        "callbacks": [*own, mitigation, writer, TQDMProgressBar(refresh_rate=1)],
    }


def compare(args: list[str]) -> None:
    """Run or reuse one predict job per mitigation, score them, write table and report."""
    import lightning.pytorch as pl
    from rich.console import Console

    from callbacks.wandb_run import WandbOptions
    from callbacks.writer import SampleWriter
    from data.cli import as_users
    from infer.compare.measure import Measures, finish
    from infer.compare.options import Comparison
    from infer.options import device_of
    from infer.predict.run_folder import told
    from infer.report.page import write_report
    from infer.report.terminal import terminal_table

    calm_lightning()
    args = with_sweep(with_prompts(args))
    lists = ("--mitigations", "--training", "--wandb_tags")
    comparison, wandb = options_of([Comparison, WandbOptions], compare, args, lists)
    jobs = [(job, load_mitigation(job.preset, job.options)) for job in comparison.jobs()]
    folders, module = {}, comparison.module(comparison.model.pipeline)
    module.load()
    side = comparison.model.resolution_of(module.pipe)
    Measures.check(comparison)  # before the first run
    images = comparison.training_images()
    for job, mitigation in jobs:  # before the first of them runs
        if job.pipeline == module.model.pipeline:
            module.check([mitigation], comparison.data().requests)
    for job, mitigation in jobs:
        if module.model.pipeline != job.pipeline:  # load a model once
            module = comparison.module(job.pipeline)
        folders[job.name] = folder = Path(comparison.out) / job.name
        options = trainer_options(str(folder), mitigation, SampleWriter(job.name), [])
        with as_users("trainer"):
            trainer = pl.Trainer(**vars(comparison.trainer), **options)
        if trainer.is_global_zero:
            print(f"{job.name}:", flush=True)
        trainer.predict(module, comparison.data(), return_predictions=False)
        if trainer.is_global_zero:
            print(told(folder), flush=True)
    if trainer.is_global_zero:
        device = "cpu" if comparison.trainer.accelerator == "cpu" else str(device_of(None))
        measures = Measures.load(comparison, device)
        Console().print(terminal_table(finish(comparison, measures, images, folders, side)))
        print(f"report: {write_report(Path(comparison.out)).resolve()}")
        if wandb.wandb != "off":
            log_comparison(Path(comparison.out), wandb.wandb)


def log_comparison(folder: Path, mode: str) -> None:
    """Table, plots and images to W&B, as one run, also when it is compared again."""
    from callbacks.wandb_run import wandb_logger
    from infer.report.wandb_log import log_to_wandb

    run = wandb_logger(folder, offline=mode == "offline").experiment
    log_to_wandb(folder, run)
    run.finish()


def calibrate(args: list[str]) -> None:
    """Find a model's static transition, or a gate at a stated false-positive rate; write a preset."""
    import yaml

    from data.files import write_atomically
    from infer.calibrate import plots as calibrate_plots
    from infer.calibrate.calibration import Calibration, predict_command

    [calibration] = options_of([Calibration], calibrate, args)
    mitigation, out = load_mitigation(calibration.mitigation), Path(calibration.out)
    preset = mitigation.identity()
    found = calibration.measure(preset["init_args"])
    preset["init_args"] |= found.settings
    type(mitigation)(**preset["init_args"]).check(
        found.timesteps, calibration.model.guidance_scale
    )  # with what was there before
    numbers = "".join(f"# {name}: {value:g}\n" for name, value in (found.settings | found.about).items())
    comments = f"# {predict_command(calibration)}\n{calibration.told(found)}{numbers}"
    text = comments + yaml.safe_dump(preset, sort_keys=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = calibrate_plots.save(found, calibration.watch, out)
    write_atomically(out, lambda part: part.write_text(text))
    print(f"{text}preset: {out}, and why: {picture}")


def basin(args: list[str]) -> None:
    """Draw where a model's attraction basin ends: curves, and images for full guidance on [t, 0]."""
    from rich.console import Console

    from callbacks.mitigations.dynamic_transition import DynamicTransition
    from callbacks.mitigations.static_transition import StaticTransition
    from infer.basin import numbers as basin_numbers
    from infer.basin import plots as basin_plots
    from infer.basin.explore import explore
    from infer.basin.options import Basin
    from infer.denoising.curves import SPACES

    [options] = options_of([Basin], basin, args, lists=("--points", "--training"))
    found = explore(options, StaticTransition, {space: DynamicTransition(watch=space) for space in SPACES})
    paths = [*basin_plots.save(found), basin_numbers.write_numbers(found)]
    Console().print(basin_numbers.point_table(found), basin_numbers.firing_table(found))
    print(basin_numbers.told(found))
    print(f"pictures and numbers: {', '.join(map(str, paths))}")


COMMANDS = {
    command.__name__: command for command in (predict, compare, score, calibrate, detect, report, basin)
}


def main(args: list[str]) -> int:
    from data.cli import run

    return run("python -m infer", __doc__, COMMANDS, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
