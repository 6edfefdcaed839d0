"""See memorization happen: training images above, what the model makes of their captions below."""

from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import torch
from PIL import Image

from callbacks.ema import EMA
from infer.denoise import denoise
from infer.seeds import initial_noise, sample_seed


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
        ema = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)
        with ema.applied(pl_module) if ema else nullcontext():
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

    @torch.no_grad()
    def generate(
        self, pl_module: pl.LightningModule, prompts: list[tuple[str, str]], resolution: int
    ) -> list[Image.Image]:
        pipe, unet, device = pl_module.pipe, pl_module.trained, pl_module.device
        seeds = [sample_seed(self.seed, key, 0) for key, _ in prompts]
        side = resolution // pipe.vae_scale_factor
        noise, generators = initial_noise(seeds, (unet.config.in_channels, side, side), torch.float32)
        conditional = pl_module.encode_prompts([text for _, text in prompts], device).float()
        unconditional = pl_module.encode_prompts([""], device).float().expand_as(conditional)
        unet.eval()
        with torch.autocast(device.type, enabled=False):
            latents = denoise(
                unet, pipe.scheduler, noise.to(device), unconditional, conditional,
                self.guidance_scale, self.num_inference_steps, generators=generators,
            ).latents  # fmt: skip
        unet.train()
        vae = pipe.vae.to(device)
        decoded = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
        return pipe.image_processor.postprocess(decoded.float(), output_type="pil")
