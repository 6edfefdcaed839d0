"""Finetune until it memorizes.

  python -m train fit  --config configs/train/demo.yaml            finetune, about 5 minutes on 2 cores
  python -m train plan --config configs/train/laion10k.yaml        what a fit would do, before it takes a GPU
  python -m train plan stream --config configs/train/laion_stream.yaml    and a stream
  python -m train fit  --config configs/train/laion10k.yaml --trainer.devices 8 --wandb online
  python -m train stream --config configs/train/laion_stream.yaml --trainer.devices 8   shards beyond memory
  python -m train fit  --config configs/train/laion10k.yaml --trainer.devices 8 --trainer.strategy sharded

The bundled base model itself:
  python -m train autoencoder --config configs/train/emoji/autoencoder.yaml
  python -m train clip        --config configs/train/emoji/clip.yaml
  python -m train base        --config configs/train/emoji/unet.yaml

Every command takes --help, --print_config and dotted options (--model.lr 1e-5). Run one again and it goes on.
--debug shows the traceback behind an error.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

KINDS = {
    "fit": ("train.finetune.Finetune", "train.dataset.planned.LatentData"),
    "stream": ("train.finetune.Finetune", "train.dataset.streamed.StreamedData"),
    "base": ("train.base_model.unet.BaseTraining", "train.dataset.planned.LatentData"),
    "autoencoder": ("train.base_model.autoencoder.AutoencoderTraining", "train.base_model.images.ImageData"),
    "clip": ("train.base_model.clip.ClipTraining", "train.base_model.images.ImageData"),
}
ABOUT = {
    "fit": "Finetune on planned exposures until it memorizes. Options are in groups: data (which images, how "
    "often), model (what is trained), grid (the monitor), ema, hub, trainer (Lightning's).",
    "stream": "Finetune on shards that do not fit in memory; exposures are counted.",
    "base": "Train the bundled base model's UNet from nothing.",
    "autoencoder": "Train the bundled base model's autoencoder.",
    "clip": "Train the bundled base model's CLIP.",
}
LISTS = ("--data.sources", "--data.ordinary")
FINETUNES = ("fit", "stream")  # whose model gets a card, and may go to the Hub


def load_class(path: str) -> type:
    from importlib import import_module

    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def no_advertisement(record: Any) -> bool:
    return "Tip:" not in record.getMessage()


def build(kind: str, args: list[str]):
    """The LightningCLI of one command, everything instantiated and nothing run."""
    import logging
    import warnings

    from lightning.pytorch.callbacks import TQDMProgressBar
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.strategies import StrategyRegistry

    from callbacks.checkpoints import Checkpoints
    from callbacks.ema import EMA
    from callbacks.export import Export
    from callbacks.exposures import Exposures
    from callbacks.finite import Finite
    from callbacks.hub import PushToHub
    from callbacks.loss_bins import LossBins
    from callbacks.memorization import Memorization
    from callbacks.provenance import Provenance
    from callbacks.streamed_exposures import StreamedExposures
    from callbacks.wandb_run import wandb_logger
    from data.arguments import parse
    from train.checkpoint_file import WholeFile
    from train.run_folder import check_slurm
    from train.sharded import Sharded, check
    from train.trainer_options import as_lists, check_trainer

    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels for inference in 4 bits
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(no_advertisement)
    counting = {"LatentData": Exposures, "StreamedData": StreamedExposures}.get(KINDS[kind][1].split(".")[-1])
    StrategyRegistry.register("sharded", Sharded, "weights spread over the devices", override=True)

    class TrainCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_argument(
                "--out", type=str, required=True, help="run folder, such as outputs/demo/finetune"
            )
            parser.add_argument(
                "--checkpoint_every", type=int, default=500, help="optimizer steps between checkpoints"
            )
            parser.add_argument(
                "--wandb", choices=["off", "offline", "online"], default="off", help="W&B logging"
            )
            parser.add_lightning_class_args(EMA, "ema")
            if counting:
                parser.add_lightning_class_args(Memorization, "grid")
                parser.add_lightning_class_args(LossBins, "loss_bins")
            if kind in FINETUNES:
                parser.add_lightning_class_args(PushToHub, "hub")

        def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
            self.config = parse(parser, as_lists(args, LISTS))
            check_trainer(self.config.trainer, validates=not counting)
            if self.config.checkpoint_every < 1:
                raise ValueError(f"checkpoint_every must be at least 1, not {self.config.checkpoint_every}")

        def instantiate_trainer(self, **kwargs):
            root = Path(self.config.out)
            counted = [counting(), Provenance()] if counting else []
            checkpoints = Checkpoints(root / "checkpoints", self.config.checkpoint_every)
            own, plugins = (
                each if isinstance(each, list) else [each] if each else []
                for each in (self.config_init.trainer.callbacks, self.config_init.trainer.plugins)
            )
            bar = self.config.trainer.enable_progress_bar is not False
            bars = [TQDMProgressBar(refresh_rate=10)] if bar else []
            # Finite comes first: nothing is made of broken weights.
            callbacks = [*own, Finite(), *counted, checkpoints, *bars]
            loggers = [CSVLogger(root, name="", version="")]
            if wandb := wandb_logger(root, self.config.wandb):
                loggers.append(wandb)
            trainer = super().instantiate_trainer(
                default_root_dir=str(root),
                logger=loggers,
                callbacks=callbacks,
                plugins=[*plugins, WholeFile()],
                **kwargs,
            )
            # An exported model says that the run is finished: only the last checkpoint comes later.
            trainer.callbacks.insert(len(trainer.callbacks) - 1, Export(card=kind in FINETUNES))
            return trainer

    try:
        cli = TrainCLI(
            load_class(KINDS[kind][0]),
            load_class(KINDS[kind][1]),
            run=False,
            args=args,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={
                "exit_on_error": False,
                "prog": f"python -m train {kind}",
                "usage": f"python -m train {kind} --config FILE [--option value ...]",
                "description": ABOUT[kind],
            },
        )
    except RuntimeError as error:
        if "--ntasks" not in str(error):
            raise
        raise ValueError(f"SLURM: {' '.join(str(error).split())}") from error
    check_slurm(cli.trainer)
    if isinstance(cli.trainer.strategy, Sharded):
        check(cli.model, cli.trainer)
    if counting:
        cli.model.check(cli.trainer.max_steps, cli.datamodule.batch_size)
    return cli


def fit(kind: str, args: list[str]) -> None:
    """Train, or go on where the last start stopped; do nothing when the run is finished."""
    from callbacks.hub import PushToHub
    from train.run_folder import claim, finished, join_metrics, keep_metrics, last_checkpoint, memorized

    cli = build(kind, args)
    folder, trainer = Path(cli.config.out), cli.trainer
    if trainer.is_global_zero:
        claim(folder, cli.parser.dump(cli.config, skip_none=False))
    grid = cli.config.get("grid")
    if finished(folder, trainer.max_steps):
        ended = f"{folder} is finished ({trainer.max_steps:,} steps)"
    elif grid and memorized(folder, grid.stop_at_share, grid.threshold):
        ended = f"{folder} is finished (grid.stop_at_share {grid.stop_at_share:g})"
    else:
        ended = "model"
        checkpoint = last_checkpoint(folder)
        if checkpoint and trainer.is_global_zero:
            print(f"going on from {checkpoint}")
            keep_metrics(folder)
        hub = next((each for each in trainer.callbacks if isinstance(each, PushToHub)), None)
        if hub and hub.repo and trainer.is_global_zero:
            hub.prepare()  # before anything is encoded
        trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        join_metrics(folder)
        print(f"{ended}: {folder / 'pipeline'}")
        for callback in trainer.callbacks:
            if isinstance(callback, PushToHub):
                callback.push(folder)


def plan(args: list[str]) -> None:
    """Print what the fit, or stream, of this config would do; ValueError when something for it is missing."""
    from rich.console import Console

    from train.plan.table import plan_table

    kind = "stream" if args[:1] == ["stream"] else "fit"
    cli = build(kind, args[kind == "stream" :])
    table, missing = plan_table(cli.model, cli.datamodule, cli.trainer)
    Console().print(table)
    if missing:
        raise ValueError(f"not all is here: {'; '.join(missing)}")


def main(args: list[str]) -> int:
    from data.cli import run

    commands = {kind: partial(fit, kind) for kind in KINDS} | {"plan": plan}
    return run("python -m train", __doc__, commands, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
