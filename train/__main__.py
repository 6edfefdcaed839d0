"""Finetune until it memorizes.

  python -m train fit  --config configs/train/demo.yaml            finetune, about 5 minutes on 2 cores
  python -m train plan --config configs/train/laion10k.yaml        what a fit would do; plan stream: a stream
  python -m train plan --config configs/train/laion10k.yaml --measure --price_per_hour 2.5   hours and cost
  python -m train fit  --config configs/train/laion10k.yaml --trainer.devices 8 --wandb online
  python -m train stream --config configs/train/laion_stream.yaml --trainer.devices 8   shards beyond memory
  python -m train fit  --config configs/train/laion10k.yaml --trainer.devices 8 --trainer.strategy sharded

The bundled base model:
  python -m train autoencoder --config configs/train/scenes/autoencoder.yaml
  python -m train clip        --config configs/train/scenes/clip.yaml
  python -m train base        --config configs/train/scenes/unet.yaml

Every command takes --help, --print_config and dotted options (--model.lr 1e-5). The same command continues an
interrupted run. --debug shows the traceback behind an error.
"""

import sys
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from typing import Any

from train.cli import DENOISERS, MODULES, build, items
from train.plan.command import plan


def fit(kind: str, args: list[str]) -> None:
    """Train, or continue where the last start stopped; do nothing when the run is finished."""
    from data.disk import full_disk_named
    from train.run_folder.claim import claim

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
    from train.run_folder.checkpoint_file import read_checkpoint
    from train.run_folder.claim import exported_steps, last_checkpoint, memorized
    from train.run_folder.metrics_file import join_metrics, keep_metrics
    from train.run_folder.resume import write_results

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


def main(args: list[str]) -> int:
    from data.cli import run as run_command

    commands = {kind: partial(fit, kind) for kind in MODULES} | {"plan": plan}
    return run_command("python -m train", __doc__, commands, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
