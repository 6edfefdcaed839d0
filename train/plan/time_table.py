"""How long a whole fit takes, and what it costs, from a few measured steps."""

from dataclasses import dataclass

from rich.table import Table

from infer.plan.rows import table_of
from infer.plan.words import assumption, cost, device_name, duration, rounded
from train.plan.measure import Measured


@dataclass(frozen=True)
class Job:
    """What a fit does how often.

    Attributes:
        steps: optimizer steps.
        batch: images of a step on one device.
        devices: all devices.
        monitor_every, checkpoint_every: optimizer steps between two; None: never.
    """

    steps: int
    batch: int
    devices: int
    monitor_every: int | None
    checkpoint_every: int | None

    @property
    def measurements(self) -> int:
        """Of the monitor: every so many steps, and at the end."""
        return -(-self.steps // self.monitor_every) if self.monitor_every else 0

    @property
    def checkpoints(self) -> int:
        """Every so many steps, and at the end."""
        return -(-self.steps // self.checkpoint_every) if self.checkpoint_every else 0


def seconds_of(job: Job, measured: Measured) -> dict[str, float]:
    """Seconds of each part of the job.

    A step of W devices shows W batches in the time that one device takes for one; the cache is written by all
    devices together. Images, checkpoints and export are the first one's, for which the others wait.
    """
    return {
        "start": measured.start,
        "encoding": sum(each.seconds for each in measured.encoding.values()) / job.devices,
        "steps": job.steps * measured.step,
        "monitor": job.measurements * measured.images,
        "checkpoints": job.checkpoints * measured.checkpoint,
        "export": measured.export,
    }


def time_table(job: Job, measured: Measured, price_per_hour: float | None, own_callbacks: bool) -> Table:
    """The table; `own_callbacks`: whether the job has callbacks of its own, which are not measured."""
    seconds = seconds_of(job, measured)
    total, speed = sum(seconds.values()), job.batch / measured.step
    lacking = ", ".join(f"{each.rows:,} {what}" for what, each in measured.encoding.items())
    several, known = job.devices > 1, measured.peak_gib == measured.peak_gib

    def times(number: int, each: float) -> str | None:
        return f"{number:,} x {duration(each)}: {duration(number * each)}" if number else None

    rows = {
        "measured": f"{measured.steps} steps of {job.batch:,} images on one {device_name(measured.device)}",
        "assumed": assumption(job.devices) if several else None,
        "not measured": "trainer.callbacks" if own_callbacks else None,
        "peak memory": f"{rounded(measured.peak_gib)} GiB" if known else None,
        "images per second": rounded(speed * job.devices) + (f", {rounded(speed)} on one" if several else ""),
        "start": duration(seconds["start"]),
        "encoding": f"{lacking}: {duration(seconds['encoding'])}" if lacking else None,
        "steps": times(job.steps, measured.step),
        "monitor": times(job.measurements, measured.images),
        "checkpoints": times(job.checkpoints, measured.checkpoint),
        "export": duration(seconds["export"]),
        "whole job": f"about {duration(total)}",
        "cost": cost(total, job.devices, price_per_hour) if price_per_hour else None,
    }
    return table_of("time", rows)
