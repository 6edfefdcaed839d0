"""`python -m train plan`: what a fit or a stream would do, and with --measure what it takes."""

import sys
from dataclasses import fields
from typing import Any

from train.cli import Plan, build


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
