"""Finetune until it memorizes.

  python -m train fit  --config configs/train/demo.yaml            finetune, about 5 minutes on 2 cores
  python -m train plan --config configs/train/laion10k.yaml        what a fit would do; plan stream: a stream
  python -m train plan --config configs/train/laion10k.yaml --measure --price_per_hour 2.5   hours and cost
  python -m train fit  --config configs/train/laion10k.yaml --trainer.devices 8 --wandb online
  python -m train stream --config configs/train/laion_stream.yaml --trainer.devices 8   shards beyond memory
  python -m train fit  --config configs/train/laion10k.yaml --trainer.devices 8 --trainer.strategy sharded

The bundled base model:
  python -m train autoencoder --config configs/train/emoji/autoencoder.yaml
  python -m train clip        --config configs/train/emoji/clip.yaml
  python -m train base        --config configs/train/emoji/unet.yaml

Every command takes --help, --print_config and dotted options (--model.lr 1e-5). The same command continues an
interrupted run. --debug shows the traceback behind an error.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

MODULES = {  # the model and data of each command
    "fit": ("train.finetune.Finetune", "train.dataset.planned.LatentData"),
    "stream": ("train.finetune.Finetune", "train.dataset.streamed.StreamedData"),
    "base": ("train.base_model.unet.BaseTraining", "train.dataset.planned.LatentData"),
    "autoencoder": ("train.base_model.autoencoder.AutoencoderTraining", "train.base_model.images.ImageData"),
    "clip": ("train.base_model.clip.ClipTraining", "train.base_model.images.ImageData"),
}
LISTS = ("--data.sources", "--data.ordinary", "--wandb_tags")
DENOISERS = ("fit", "stream", "base")  # which count exposures and are monitored
FINETUNES = ("fit", "stream")  # whose model gets a card, and may be uploaded to the Hub


class Plan(NamedTuple):
    """How a job is built to be planned, and not run.

    Attributes:
        trainer_options: options of the trainer -> those in their place.
        folder: in place of the run folder.
        data: in place of the job's class of data.
    """

    trainer_options: Callable[[Any], dict[str, Any]]
    folder: Path | None = None
    data: type | None = None


def build(kind: str, args: list[str], plan: Plan | None = None):
    """The LightningCLI of one command: everything is instantiated, nothing runs."""
    from pydoc import locate
    from tempfile import TemporaryDirectory

    from jsonargparse.typing import PositiveInt
    from lightning.pytorch.callbacks import TQDMProgressBar
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.strategies import StrategyRegistry

    from callbacks.checkpoints import Checkpoints
    from callbacks.ema import EMA
    from callbacks.export import Export
    from callbacks.exposures import Exposures
    from callbacks.finite import Finite
    from callbacks.hub import PushToHub
    from callbacks.loss_bins import LossBins
    from callbacks.monitor import Monitor
    from callbacks.provenance import Provenance
    from callbacks.wandb_run import WandbOptions
    from data.arguments import as_list, changed, parse
    from infer.predict.trainer import check_slurm, quiet_lightning
    from train.checkpoint_file import WholeFile
    from train.metrics_file import MetricsLogger
    from train.plan.options import FitPlan
    from train.sharded import Sharded, check
    from train.trainer_options import check_options

    quiet_lightning()
    StrategyRegistry.register("sharded", Sharded, "weights spread over the devices", override=True)

    class TrainCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_argument("--out", required=True, help="run folder, such as outputs/demo/finetune")
            every = "optimizer steps between checkpoints"
            parser.add_argument("--checkpoint_every", type=PositiveInt, default=500, help=every)
            parser.add_class_arguments(WandbOptions, None)
            if plan:
                parser.add_class_arguments(FitPlan, None)
            parser.add_lightning_class_args(EMA, "ema")
            parser.set_defaults({"trainer.enable_model_summary": False})  # the plan has the model's size
            if kind in DENOISERS:  # where each epoch continues the run's draws
                parser.set_defaults({"trainer.reload_dataloaders_every_n_epochs": 1})
                parser.add_lightning_class_args(Monitor, "monitor")
                parser.add_lightning_class_args(LossBins, "loss_bins")
            if kind in FINETUNES:
                parser.add_lightning_class_args(PushToHub, "hub")

        def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
            for name in LISTS:
                args = changed(args, name, as_list)
            self.config = parse(parser, args)
            check_options(self.config.trainer)

        def instantiate_trainer(self, **kwargs):
            options, keep = self.config_init.trainer, not self.config.trainer.fast_dev_run
            self.trial = None if keep else TemporaryDirectory()  # a trial leaves nothing behind
            self.folder = Path(self.config.out if keep else self.trial.name)
            self.own_callbacks = items(options.callbacks)
            if plan:
                self.folder = plan.folder or self.folder
                kwargs |= plan.trainer_options(self.config.trainer)
            callbacks = [*items(options.callbacks), Finite()]  # Finite before all that uses the weights
            if kind in DENOISERS:
                callbacks += [Exposures(), Provenance()]
            if keep and options.enable_checkpointing is not False:
                callbacks.append(Checkpoints(self.folder / "checkpoints", self.config.checkpoint_every))
            if options.enable_progress_bar is not False:
                callbacks.append(TQDMProgressBar(refresh_rate=10))
            loggers = [each for each in items(options.logger) if isinstance(each, Logger)]
            trainer = super().instantiate_trainer(
                default_root_dir=str(self.folder),
                logger=[MetricsLogger(self.folder), *loggers],
                callbacks=callbacks,
                plugins=[*items(options.plugins), WholeFile()],
                **kwargs,
            )
            if keep:  # an exported model marks the run as finished: only the last checkpoint is written later
                trainer.callbacks.append(Export(kind in FINETUNES))
                trainer.callbacks.sort(key=lambda callback: isinstance(callback, Checkpoints))
            return trainer

    classes = [locate(path) for path in MODULES[kind]]
    if plan and plan.data:
        classes[1] = plan.data
    command = "plan" if plan else kind
    try:
        cli = TrainCLI(
            *classes,
            run=False,
            args=args,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={
                "exit_on_error": False,
                "prog": f"python -m train {command}",
                "usage": f"python -m train {command} --config FILE [--option value ...]",
                "description": " ".join(cls.__doc__.partition("\n")[0] for cls in classes),
            },
        )
    except RuntimeError as error:
        if "--ntasks" not in str(error):
            raise
        raise ValueError(f"SLURM: {' '.join(str(error).split())}") from error
    check_slurm(cli.trainer)
    if isinstance(cli.trainer.strategy, Sharded):
        check(cli.model, cli.trainer)
    if kind in DENOISERS and not cli.trainer.fast_dev_run:
        cli.model.check(cli.trainer.max_steps, cli.datamodule.batch_size)
    return cli


def items(value: Any) -> list:
    """A list as it is, one item as a list, and none of None."""
    return value if isinstance(value, list) else [] if value is None else [value]


def fit(kind: str, args: list[str]) -> None:
    """Train, or continue where the last start stopped; do nothing when the run is finished."""
    from data.disk import full_disk_named
    from train.run_folder import claim

    cli = build(kind, args)
    if cli.trainer.fast_dev_run:
        cli.trainer.fit(cli.model, cli.datamodule)
        print(f"trial of {cli.trainer.global_step} steps: nothing is kept")
        return
    config = cli.parser.dump(cli.config, skip_none=False)
    claimed = claim(cli.folder, config) if cli.trainer.is_global_zero else nullcontext()
    with claimed, full_disk_named(cli.folder):
        run(kind, cli)


def run(kind: str, cli: Any) -> None:
    """`fit` in a folder that is this run's own."""
    from callbacks.hub import PushToHub
    from callbacks.monitor import Monitor
    from callbacks.wandb_run import WandbOptions
    from train.checkpoint_file import read_checkpoint
    from train.metrics_file import join_metrics, keep_metrics
    from train.resume import write_results
    from train.run_folder import exported_steps, last_checkpoint, memorized

    folder, trainer, model, data = cli.folder, cli.trainer, cli.model, cli.datamodule
    by_type = {type(callback): callback for callback in trainer.callbacks}
    monitor, hub = by_type.get(Monitor), by_type.get(PushToHub)

    def ends(step: int | None) -> bool:
        return step is not None and (step >= trainer.max_steps or memorized(folder, monitor, step))

    step, first = exported_steps(folder, kind in DENOISERS), trainer.is_global_zero
    if ends(step):
        ended = f"{folder} is finished ({step:,} steps)"
    else:
        if hub and first:
            hub.prepare()
        if monitor:
            monitor.check_scheduler(model.pipe.scheduler)
        path, checkpoint = last_checkpoint(folder), None
        if step is None and not path and (folder / "pipeline").exists():  # perhaps after days of training
            raise ValueError(
                f"{folder} has an exported model, but not all results, and no checkpoints/last.ckpt to make "
                f"them from: restore what is missing, or delete {folder / 'pipeline'} to train again"
            )
        if path:
            keys = [type(data).__qualname__, "frozen_parts"] if kind in DENOISERS else []
            checkpoint = read_checkpoint(path, *keys)
            data.previous = checkpoint.get(type(data).__qualname__)
            if first:
                print(f"continuing from {path} (step {checkpoint['global_step']:,})")
                keep_metrics(folder)
        if checkpoint and ends(checkpoint["global_step"]):
            write_results(trainer, model, data, path, checkpoint["global_step"])
        else:
            options = WandbOptions(**{each.name: cli.config[each.name] for each in fields(WandbOptions)})
            wandb = options.logger(folder, cli.config.as_dict())
            trainer.loggers += items(wandb)
            trainer.fit(model, data, ckpt_path=path and str(path), weights_only=True)
        step = trainer.global_step
        more = "" if ends(step) else f" of {trainer.max_steps:,}: the same command continues"
        ended = f"model after {step:,} steps{more}"
    if first:
        join_metrics(folder)
        print(f"{ended}: {folder / 'pipeline'}")
        if hub:
            hub.upload(folder)


def plan(args: list[str]) -> None:
    """Print what the fit, or stream, of this config would do; ValueError when something for it is missing."""
    from rich.console import Console

    from infer.plan.options import with_measure
    from train.plan.options import FitPlan
    from train.plan.table import plan_table

    kind = "stream" if args[:1] == ["stream"] else "fit"
    args = with_measure(args[kind == "stream" :])
    cli = build(kind, args, Plan(planned))
    options = FitPlan(**{each.name: cli.config[each.name] for each in fields(FitPlan)})
    table, missing = plan_table(cli.model, cli.datamodule, cli.trainer)
    Console().print(table)
    if missing:
        raise ValueError(f"not all is here: {'; '.join(missing)}")
    if options.measure:
        Console().print(measured(kind, args, cli))


def planned(options: Any) -> dict[str, Any]:
    """In place of a trainer's options where its devices are not here: so many processes on the CPU."""
    from infer.plan.words import are_here, device_count

    devices = device_count(options.devices, options.accelerator)
    here = are_here(devices, options.accelerator)
    return {} if here else {"accelerator": "cpu", "devices": devices, "precision": "32"}


def one_device(options: Any) -> dict[str, Any]:
    """In place of a trainer's options: the first of its devices alone."""
    devices = options.devices[:1] if isinstance(options.devices, list) else 1
    return {"devices": devices, "num_nodes": 1, "strategy": "auto"}


def measured(kind: str, args: list[str], job: Any) -> Any:
    """The table of a built job's time and cost, from a few steps in a folder that is removed."""
    from callbacks.checkpoints import Checkpoints
    from callbacks.monitor import Monitor
    from infer.plan.scratch import scratch
    from train.plan.few_cached import FewCached
    from train.plan.measure import measure
    from train.plan.time_table import Job, time_table

    options, by_type = job.config, {type(callback): callback for callback in job.trainer.callbacks}
    with scratch(job.folder) as folder:
        cli = build(kind, args, Plan(one_device, folder, FewCached if kind == "fit" else None))
        print(f"measuring up to {options.measure_steps} steps ...", file=sys.stderr, flush=True)
        parts = measure(cli.model, cli.datamodule, cli.trainer, options.measure_steps, cli.own_callbacks)
    numbers = Job(
        steps=job.trainer.max_steps,
        batch=job.datamodule.batch_size * job.trainer.accumulate_grad_batches,
        devices=job.trainer.world_size,
        monitor_every=by_type[Monitor].every_n_steps,
        checkpoint_every=options.checkpoint_every if Checkpoints in by_type else None,
    )
    return time_table(numbers, parts, options.price_per_hour, bool(cli.own_callbacks))


def main(args: list[str]) -> int:
    from data.cli import run as run_command

    commands = {kind: partial(fit, kind) for kind in MODULES} | {"plan": plan}
    return run_command("python -m train", __doc__, commands, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
