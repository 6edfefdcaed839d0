"""A command's LightningCLI: which model and data it trains, with which callbacks, and nothing run yet."""

from collections.abc import Callable
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
    from train.plan.options import FitPlan
    from train.run_folder.checkpoint_file import WholeFile
    from train.run_folder.metrics_file import MetricsLogger
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
