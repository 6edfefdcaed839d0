"""Generate with a mitigation, and measure what it does.

  python -m infer predict --config configs/infer/demo_predict.yaml --mitigation stp
  python -m infer predict --config configs/infer/demo_predict.yaml --mitigation StaticTransition \\
    --mitigation.timestep 500
  python -m infer predict --run outputs/demo/finetune --out outputs/mine \\
    --prompt "a red car" --prompt "a blue dog" --samples_per_prompt 4
  python -m infer compare --config configs/infer/demo.yaml
  python -m infer compare --config configs/infer/demo.yaml --mitigations none,stp --out outputs/x
  python -m infer plan    --config configs/infer/demo.yaml --measure --price_per_hour 2.5
  python -m infer audit   --model.pipeline my_finetune --training images --out outputs/audit
  python -m infer score   --runs outputs/stp,outputs/none --run outputs/demo/finetune --clip data/scenes/judge
  python -m infer report  outputs/demo/compare
  python -m infer basin   --config configs/infer/basin.yaml
  python -m infer detect  --config configs/infer/detect.yaml
  python -m infer doctor  --pipeline outputs/demo/finetune/pipeline
  python -m infer index   --run outputs/demo/finetune --out outputs/demo/index.safetensors
  python -m infer calibrate --run outputs/demo/finetune --mitigation dtp --out outputs/demo/gated_dtp.yaml \\
    --ordinary data/scenes/ordinary.txt

--mitigation takes the name of a preset in configs/mitigation, the path of a YAML file, several as A+B, or a
class with its options. Every command takes --help, and all but report --config and --print_config. Run
predict, compare or audit again and only missing images are generated; the other commands begin anew.
--debug shows the traceback behind an error.
"""

import sys
from functools import partial
from importlib import import_module
from pathlib import Path


def predict(args: list[str]) -> None:
    """Generate images with a mitigation into a run folder. Images that the folder holds are kept."""
    from callbacks.mitigations.preset_files import check_presets, names_in, preset_names
    from data.arguments import as_list, built, changed, command_parser, parse, values_of, with_prompts

    check_presets(values_of(args, "--mitigation"))  # before all that takes seconds to import
    import lightning.pytorch as pl

    from callbacks.mitigations.base import Mitigation, NoMitigation
    from callbacks.mitigations.presets import (
        instantiate,
        label,
        load_mitigation,
        load_mitigations,
        preset_given,
        with_presets,
    )
    from callbacks.predict.progress import PredictProgress
    from callbacks.predict.writer import SampleWriter
    from callbacks.wandb_run import WandbOptions
    from data.disk import full_disk_named
    from infer.index.options import GuardOptions
    from infer.options import DenoiseOptions, PromptOptions
    from infer.predict.module import Generate
    from infer.predict.options import GenerateOptions
    from infer.predict.prompt_data import PromptData
    from infer.predict.summary import check_images, summary_line
    from infer.predict.trainer import quiet_lightning, trainer_for

    quiet_lightning()
    parser = command_parser(predict, PromptOptions)
    parser.add_subclass_arguments(
        Mitigation, "mitigation", required=False, default=None,
        help=f"a preset of configs/mitigation by its name ({', '.join(preset_names())}), a YAML file, A+B "
        "for several of these, or a class; options of the last one follow as --mitigation.OPTION; "
        "--mitigation.help CLASS has them",
    )  # fmt: skip
    parser.add_class_arguments(DenoiseOptions, None, fail_untyped=True, skip={"out", "run"})
    parser.add_class_arguments(GuardOptions, "guard", fail_untyped=True)
    parser.add_class_arguments(WandbOptions, None, fail_untyped=True)
    others = {"default_root_dir", "precision", "inference_mode"}  # --out, --model.dtype, gradients of rules
    parser.add_class_arguments(
        pl.Trainer, "trainer", fail_untyped=False, instantiate=False, sub_configs=True, skip=others
    )
    preset = preset_given(args)
    args = with_presets(args, "--mitigation", "NoMitigation")
    args = with_presets(args, "--mitigation.transition", "TwoPassTransition")
    parsed = parse(parser, changed(with_prompts(args), "--wandb_tags", as_list))
    init = instantiate(parser, parsed, "--mitigation")
    options, wandb = built([GenerateOptions, WandbOptions], init)
    mitigation, trainer_options = init.mitigation or NoMitigation(), dict(vars(init.trainer))
    among = [one for one in trainer_options["callbacks"] or [] if isinstance(one, Mitigation)]
    *first, _ = names_in(preset or "")
    mitigations = [*map(load_mitigation, first), mitigation]
    name, guard = label([*among, *mitigations], preset), init.guard.guard(load_mitigations)
    name += f", {guard.label()}" if guard else ""
    data, module = PromptData(options), Generate(options.model, guard)
    logger = wandb.logger(Path(options.out), {"label": name})
    ours = [*mitigations, SampleWriter(name), PredictProgress()]
    trainer = trainer_for(options.out, ours, trainer_options, logger)
    with full_disk_named(Path(options.out)):
        trainer.predict(module, data, return_predictions=False)
    if trainer.is_global_zero:
        print(summary_line(Path(options.out)))
        print(f"images: {options.out}/images, rows: {options.out}/samples.parquet")
        check_images(Path(options.out))


def check_mitigations(args: list[str]) -> None:
    """ValueError for a preset of `--mitigations` that does not exist, before what takes seconds to import."""
    from callbacks.mitigations.preset_files import check_presets
    from data.arguments import values_of

    lists = [names.split(",") for names in values_of(args, "--mitigations") if not names.startswith("[")]
    check_presets([name.strip() for names in lists for name in names])


def labelled(preset: str, options: dict | None = None) -> tuple[str, list]:
    """A preset's label and its mitigations."""
    from callbacks.mitigations.presets import label, load_mitigations

    mitigations = load_mitigations(preset, options)
    return label(mitigations, preset), mitigations


def plan(args: list[str]) -> None:
    """Say what a comparison would make: images, and if measured UNet evaluations, time and cost."""
    check_mitigations(args)
    from callbacks.wandb_run import WandbOptions
    from infer.plan.command import plan
    from infer.predict.trainer import quiet_lightning

    quiet_lightning()
    plan(args, [WandbOptions], labelled)


def compare(args: list[str]) -> None:
    """Run or reuse one predict job per mitigation, score them, write table and report."""
    from data.arguments import options_of, with_prompts, with_sweep

    check_mitigations(args)
    from lightning.pytorch.utilities import rank_zero_only
    from rich.console import Console

    from callbacks.predict.progress import PredictProgress
    from callbacks.predict.writer import SampleWriter
    from callbacks.wandb_run import WandbOptions
    from data.disk import full_disk_named
    from infer.compare.folder import finish
    from infer.compare.measures import Measures
    from infer.compare.options import Comparison
    from infer.options import device_of
    from infer.predict.module import Generate
    from infer.predict.prompt_data import PromptData
    from infer.predict.summary import summary_line
    from infer.predict.trainer import quiet_lightning, trainer_for
    from infer.report.page import write_report
    from infer.report.terminal import terminal_table
    from infer.report.wandb_log import log_to_wandb

    quiet_lightning()
    kinds = [Comparison, WandbOptions]
    comparison, wandb = options_of(kinds, compare, with_sweep(with_prompts(args)))
    jobs, out, first = comparison.plan(labelled), Path(comparison.out), rank_zero_only.rank == 0
    module, data = Generate(comparison.model), PromptData(comparison)
    if first:  # what can be missing or cannot work: before the first run
        module.load()
        for job in jobs:
            if job.model is comparison.model:
                module.check(job.mitigations, data.requests)
        comparison.check_ids()
        resolution = comparison.model.resolution_of(module.pipe)
        device = "cpu" if comparison.trainer.accelerator == "cpu" else str(device_of(None))
        measures = Measures(comparison, device)
    for job in jobs:
        if module.model != job.model:  # load a model once
            module = Generate(job.model)
        ours = [*job.mitigations, SampleWriter(job.label), PredictProgress()]
        trainer = trainer_for(str(out / job.label), ours, vars(comparison.trainer))
        if first:
            print(f"{job.label}:", flush=True)
        with full_disk_named(out):
            trainer.predict(module, data, return_predictions=False)
        if first:
            print(summary_line(out / job.label), flush=True)
    if first:
        folders = {job.label: out / job.label for job in jobs}
        with full_disk_named(out):
            table, page = finish(comparison, measures, folders, resolution), write_report(out)
        Console().print(terminal_table(table))
        print(f"report: {page.resolve()}")
        if logger := wandb.logger(out, {"model": comparison.model.identity(), "seed": comparison.seed}):
            logger.safely(log_to_wandb, out, logger.experiment)
            logger.finalize()


def audit(args: list[str]) -> None:
    from callbacks.predict.writer import SampleWriter
    from infer.audit.command import audit
    from infer.predict.trainer import quiet_lightning, trainer_for

    def trainer(folder: Path, name: str, mitigations: list, options: dict):
        return trainer_for(str(folder), [*mitigations, SampleWriter(name)], options)

    quiet_lightning()
    audit(args, labelled, trainer)


def calibrate(args: list[str]) -> None:
    from callbacks.mitigations.presets import load_mitigation
    from infer.calibrate.command import calibrate

    calibrate(args, load_mitigation)


def basin(args: list[str]) -> None:
    from callbacks.mitigations.dynamic_transition import DynamicTransition
    from callbacks.mitigations.static_transition import StaticTransition
    from infer.basin.command import basin
    from infer.denoising.curves import SPACES

    basin(args, StaticTransition, {space: DynamicTransition(watch=space) for space in SPACES})


def alone(name: str, args: list[str]) -> None:
    """A command that needs no callback."""
    getattr(import_module(f"infer.{name}.command"), name)(args)


def main(args: list[str]) -> int:
    from data.cli import run

    named = {command.__name__: command for command in (predict, plan, compare, audit, calibrate, basin)}
    others = {name: partial(alone, name) for name in ("score", "detect", "index", "report", "doctor")}
    return run("python -m infer", __doc__, named | others, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
