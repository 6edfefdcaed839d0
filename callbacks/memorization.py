"""See memorization happen, and stop when there is enough of it."""

from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import torch
from torch import Tensor

from callbacks.ema import averaged
from callbacks.finite import Finite
from callbacks.sample_grid import generate, sheet
from data.files import write_atomically
from data.prompts import Prompt
from infer.denoising.requests import requests_for
from infer.metrics.similarity import Descriptor, pixel_descriptor
from infer.metrics.sscd import check_sscd, sscd_descriptor


class Memorization(pl.Callback):
    """Every so many steps, and at the end, generate from training captions and compare with their images.

    Writes `samples/step-<n>.png` (training image, generation, similarity; also to W&B), the numbers to
    `samples/similarity.parquet` (step, id, similarity), and logs `memorized_share` and `similarity_mean`,
    with averaged weights if an EMA runs.

    Args:
        every_n_steps: optimizer steps between looks.
        count: training images, the first duplicated ones.
        num_inference_steps: of the pipeline's scheduler.
        guidance_scale: of classifier-free guidance.
        seed: base seed of the noise; the same noise every time.
        threshold: an image is memorized if it is more similar than this to its training image.
        stop_at_share: end the run, with all that ends one, once this share is memorized; null: never.
        sscd: SSCD model to compare with: a file (.pt TorchScript or .onnx), its URL, or disc_mixup or
            disc_large; null: correlation of the pixels, for small centred images.
        sscd_sha256: checksum of the SSCD model.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        count: int = 16,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        seed: int = 0,
        threshold: float = 0.5,
        stop_at_share: float | None = None,
        sscd: str | None = None,
        sscd_sha256: str | None = None,
    ):
        for name, value in (
            ("every_n_steps", every_n_steps),
            ("count", count),
            ("num_inference_steps", num_inference_steps),
        ):
            if value < 1:
                raise ValueError(f"grid.{name} must be at least 1, not {value}")
        if stop_at_share is not None and not 0 < stop_at_share <= 1:
            raise ValueError(f"grid.stop_at_share must be in (0, 1], not {stop_at_share}")
        if not -1 <= threshold < 1:
            raise ValueError(f"grid.threshold must be in [-1, 1), not {threshold}")
        if sscd:
            check_sscd(sscd, sscd_sha256)
        elif sscd_sha256:
            raise ValueError("grid.sscd_sha256 is the SSCD model's: give grid.sscd too")
        self.every_n_steps, self.count, self.seed = every_n_steps, count, seed
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.threshold, self.stop_at_share = threshold, stop_at_share
        self.sscd, self.sscd_sha256 = sscd, sscd_sha256
        self.looked = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.stop_at_share is not None and trainer.min_steps:
            raise ValueError("grid.stop_at_share and trainer.min_steps say different things: leave one out")
        most = pl_module.pipe.scheduler.config.num_train_timesteps
        if self.num_inference_steps > most:
            raise ValueError(
                f"grid.num_inference_steps is {self.num_inference_steps}, but the schedule has {most} steps"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All that does not change, once. What an interrupted start saw after the checkpoint goes."""
        self.seen = trainer.global_step  # a resumed run is not at the end of this step, but after it
        if not trainer.is_global_zero:
            return
        watched = trainer.datamodule.shown_first(self.count)
        self.samples = [sample for sample, _ in watched]
        self.captions = [caption for _, caption in watched]
        self.resolution = trainer.datamodule.resolution or pl_module.native_resolution
        self.training = [sample.rgb(self.resolution) for sample in self.samples]
        self.descriptor = self.load_descriptor(pl_module.device)
        self.wanted = self.descriptor(self.training)
        self.folder = Path(trainer.default_root_dir) / "samples"
        self.path = self.folder / "similarity.parquet"
        if self.path.exists():
            self.write([], after=trainer.global_step)

    def load_descriptor(self, device: torch.device) -> Descriptor:
        if not self.sscd:
            return pixel_descriptor
        return sscd_descriptor(self.sscd, sha256=self.sscd_sha256, device=str(device))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        step = trainer.global_step
        if step == self.seen:  # within an accumulated step
            return
        self.seen = step
        if step % self.every_n_steps:
            return
        for callback in trainer.callbacks:
            if isinstance(callback, Finite):
                callback.check(trainer, pl_module)  # nothing is made of broken weights
        share = self.look(trainer, pl_module)
        if self.stop_at_share is None or step >= trainer.max_steps:
            return
        share = trainer.strategy.broadcast(share)
        if share >= self.stop_at_share:
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(
                    f"step {step:,}: {share:.0%} of {len(self.samples)} watched images memorized (similarity "
                    f"above {self.threshold:g}): the run ends here, as grid.stop_at_share "
                    f"{self.stop_at_share:g} asks"
                )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self.looked:
            self.look(trainer, pl_module)

    def look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float | None:
        """The memorized share, on the first rank; None on the others, which have nothing to do."""
        self.looked = trainer.global_step
        with averaged(trainer, pl_module):
            return self.make(trainer, pl_module) if trainer.is_global_zero else None

    def make(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        step = trainer.global_step
        named = zip(self.samples, self.captions, strict=True)
        requests = requests_for((Prompt(sample.id, caption) for sample, caption in named), 1, self.seed)
        made = generate(pl_module, requests, self.resolution, self.guidance_scale, self.num_inference_steps)
        similarity: Tensor = (self.descriptor(made) * self.wanted).sum(1)
        numbers = {
            "memorized_share": (similarity > self.threshold).float().mean().item(),
            "similarity_mean": similarity.mean().item(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        drawn = sheet(self.training, made, similarity.tolist(), self.threshold)
        drawn.save(self.folder / f"step-{step:06d}.png")
        self.write(
            [
                {"step": step, "id": sample.id, "similarity": value}
                for sample, value in zip(self.samples, similarity.tolist(), strict=True)
            ],
            after=step - 1,
        )
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step - 1)  # Lightning's own count, that of this step's loss
            if isinstance(logger, pl.loggers.WandbLogger):
                caption = ["training image | generation | similarity"]
                logger.log_image("samples", [drawn], step=step - 1, caption=caption)
        return numbers["memorized_share"]

    def write(self, rows: list[dict], after: int) -> None:
        """Put `rows` in place of the file's from after that step on; the file is complete at any time."""
        table = pd.DataFrame(rows, columns=["step", "id", "similarity"])
        if self.path.exists():
            before = pd.read_parquet(self.path)
            before = before[before["step"] <= after]
            table = pd.concat([before, table], ignore_index=True) if rows else before
        write_atomically(self.path, lambda part: table.to_parquet(part, index=False))
