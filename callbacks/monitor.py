"""Measure memorization during a training, and stop the training when there is enough of it."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from jsonargparse.typing import PositiveInt

from callbacks.ema import averaged
from callbacks.finite import Finite
from callbacks.sample_grid import generate, sheet
from data.cli import warn_no_effect
from data.files import write_atomically
from data.ranges import Correlation, FiniteFloat, Share
from infer.denoising.hooks import Request
from infer.denoising.loop import prepare
from infer.denoising.noise import sample_seed
from infer.denoising.sampling import resolution_of
from infer.metrics.similarity import pixel_descriptor, similarity
from infer.metrics.sscd import ProtocolName, check_sscd, sscd_descriptor


class Monitor(pl.Callback):
    """Generate images from training captions, and compare them with their training images.

    Runs every so many steps and at the end, with the averaged weights where an EMA runs. Writes
    `samples/step-<n>.png` (training image, generated image, similarity; also to W&B) and
    `samples/similarity.parquet` (step, id, similarity, measure), and logs `memorized_share` and
    `similarity_mean`. A similarity that is undefined (a generated image of one color) is NaN: not memorized,
    and left out of the mean.

    Args:
        every_n_steps: optimizer steps between two measurements.
        count: number of training images to watch, the first duplicated ones.
        num_inference_steps: of the pipeline's scheduler.
        guidance_scale: of classifier-free guidance.
        seed: base seed of the noise, which is the same at each measurement.
        threshold: an image is memorized if its similarity to its training image is above this.
        stop_at_share: stop the run, with all its results, once this share is memorized; null: never.
        sscd: SSCD model to compare with: a file (.pt TorchScript or .onnx), its URL, or disc_mixup or
            disc_large; null: local correlation of 32x32 RGB, for small images.
        sscd_protocol: how images are resized and normalized for SSCD.
        sscd_sha256: checksum of the SSCD model.
    """

    def __init__(
        self,
        every_n_steps: PositiveInt = 500,
        count: PositiveInt = 16,
        num_inference_steps: PositiveInt = 25,
        guidance_scale: FiniteFloat = 3.0,
        seed: int = 0,
        threshold: Correlation = 0.5,
        stop_at_share: Share | None = None,
        sscd: str | None = None,
        sscd_protocol: ProtocolName = "skew320",
        sscd_sha256: str | None = None,
    ):
        if sscd:
            check_sscd(sscd, sscd_sha256)
        elif sscd_sha256 or sscd_protocol != "skew320":
            warn_no_effect("monitor.sscd_protocol and monitor.sscd_sha256", "monitor.sscd is not given")
        self.every_n_steps, self.count, self.seed = every_n_steps, count, seed
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.threshold, self.stop_at_share = threshold, stop_at_share
        self.sscd, self.sscd_protocol, self.sscd_sha256 = sscd, sscd_protocol, sscd_sha256
        self.measured_step = -1

    @property
    def measure(self) -> str:
        """Name of the similarity: numbers under two names are not comparable."""
        return f"SSCD ({self.sscd_protocol})" if self.sscd else pixel_descriptor.identity

    def check_scheduler(self, scheduler: Any) -> None:
        """Raise ValueError for a scheduler, or a number of steps, that images cannot be generated with."""
        prepare(scheduler, self.guidance_scale, self.num_inference_steps)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load what stays the same; drop the rows that an interrupted start wrote after its checkpoint."""
        self.last_step = trainer.global_step  # a resumed run is after this step, not at its end
        if not trainer.is_global_zero:
            return
        samples, captions = zip(*trainer.datamodule.watched(self.count), strict=True)
        self.resolution = resolution_of(pl_module.pipe, trainer.datamodule.resolution)
        self.training = [sample.rgb(self.resolution) for sample in samples]
        self.ids = [sample.id for sample in samples]
        seeds = [sample_seed(self.seed, name, 0) for name in self.ids]
        self.requests = [
            Request(name, 0, caption, seed)
            for name, caption, seed in zip(self.ids, captions, seeds, strict=True)
        ]
        self.descriptor = pixel_descriptor
        if self.sscd:
            device = str(pl_module.device)
            self.descriptor = sscd_descriptor(self.sscd, self.sscd_protocol, self.sscd_sha256, device)
        self.folder = Path(trainer.default_root_dir) / "samples"
        self.path = self.folder / "similarity.parquet"
        if self.path.exists():
            self.write(None, after=trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        step = trainer.global_step
        if step == self.last_step:  # within an accumulated step
            return
        self.last_step = step
        if step % self.every_n_steps:
            return
        for callback in trainer.callbacks:
            if isinstance(callback, Finite):
                callback.check(trainer, pl_module)  # no images from broken weights
        share = self.run(trainer, pl_module)
        if self.stop_at_share is None or step >= trainer.max_steps:
            return
        share = trainer.strategy.broadcast(share)
        if share >= self.stop_at_share:
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(
                    f"step {step:,}: {share:.0%} of {len(self.requests)} watched images memorized "
                    f"({self.measure} above {self.threshold:g}): the run stops here "
                    f"(monitor.stop_at_share {self.stop_at_share:g})"
                )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self.measured_step:
            self.run(trainer, pl_module)

    def run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float | None:
        """Generate, compare and log; the memorized share on the first rank, else None. For all ranks."""
        self.measured_step = step = trainer.global_step
        with averaged(trainer, pl_module):
            if not trainer.is_global_zero:
                return None
            generated = generate(
                pl_module, self.requests, self.resolution, self.guidance_scale, self.num_inference_steps
            )
        values = similarity(self.descriptor, generated, self.training).double().numpy()
        rows = pd.DataFrame({"step": step, "id": self.ids, "similarity": values, "measure": self.measure})
        if len(undefined := rows["id"][rows["similarity"].isna()]):
            print(f"step {step:,}: similarity of {len(undefined)} images undefined ({undefined.iloc[0]} ...)")
        self.folder.mkdir(parents=True, exist_ok=True)
        title = f"step {step:,}: {self.measure}"
        picture = sheet(self.training, generated, values, self.threshold, title)
        picture.save(self.folder / f"step-{step:06d}.png")
        self.write(rows, after=step - 1)
        share = memorized_share(rows, self.threshold)
        numbers = {"memorized_share": share, "similarity_mean": rows["similarity"].mean()}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step - 1)  # Lightning's own count, that of this step's loss
            if isinstance(logger, pl.loggers.WandbLogger):
                caption = [f"training image | generated image | {self.measure}"]
                logger.log_image("samples", [picture], step=step - 1, caption=caption)
        return share

    def write(self, rows: pd.DataFrame | None, after: int) -> None:
        """Replace the file's rows of later steps than `after` with these."""
        tables = [] if rows is None else [rows]
        if self.path.exists():
            before = pd.read_parquet(self.path)
            tables.insert(0, before[before["step"] <= after])
        table = pd.concat(tables, ignore_index=True)
        write_atomically(self.path, lambda path: table.to_parquet(path, index=False))


def memorized_share(rows: pd.DataFrame, threshold: float) -> float:
    """Share of a step's images whose similarity is above the threshold; an undefined one is not."""
    return float((rows["similarity"] > threshold).mean())
