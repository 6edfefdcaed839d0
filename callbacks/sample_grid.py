"""See memorization happen: training images above, what the model makes of their captions below."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from PIL import Image

from callbacks.ema import averaged
from infer.images import make_images
from infer.rules import Request
from infer.seeds import sample_seed


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of equally large images, edge to edge."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * width, y * height))
    return sheet


class SampleGrid(pl.Callback):
    """Every so many steps, and at the end, `samples/step-<n>.png` (and W&B, if it logs).

    Args:
        every_n_steps: optimizer steps between grids.
        count: training images, the first duplicated ones.
        num_inference_steps: of the pipeline's scheduler.
        guidance_scale: of classifier-free guidance.
        seed: base seed of the noise; the same noise in every grid.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        count: int = 16,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        seed: int = 0,
    ):
        self.every_n_steps, self.count, self.seed = every_n_steps, count, seed
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.drawn = -1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        step = trainer.global_step
        if step and step % self.every_n_steps == 0 and step != self.drawn:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self.drawn:
            self.draw(trainer, pl_module)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.drawn = trainer.global_step
        if not trainer.is_global_zero:
            return
        samples = trainer.datamodule.shown_first(self.count)
        resolution = trainer.datamodule.resolution or pl_module.native_resolution
        training = [sample.rgb(resolution) for sample in samples]
        with averaged(trainer, pl_module):
            made = self.generate(pl_module, [(sample.id, sample.caption) for sample in samples], resolution)
        path = Path(trainer.default_root_dir) / "samples" / f"step-{self.drawn:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet = grid([training, made])
        sheet.save(path)
        for logger in trainer.loggers:
            if isinstance(logger, pl.loggers.WandbLogger):
                logger.log_image(
                    "samples", [sheet], step=self.drawn, caption=["training images | generations"]
                )

    def generate(
        self, pl_module: pl.LightningModule, prompts: list[tuple[str, str]], resolution: int
    ) -> list[Image.Image]:
        """In full precision; the frozen parts are on the device for as long as it takes."""
        pipe, device = pl_module.pipe, pl_module.device
        frozen = (pipe.vae, pipe.text_encoder)
        for part in frozen:
            part.to(device)
        pipe.unet.eval()
        with torch.autocast(device.type, enabled=False):
            images, _ = make_images(
                pipe,
                device,
                [Request(key, 0, text, sample_seed(self.seed, key, 0)) for key, text in prompts],
                resolution,
                self.guidance_scale,
                self.num_inference_steps,
            )
        pipe.unet.train()
        for part in frozen:
            part.to("cpu")
        return images
