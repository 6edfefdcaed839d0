"""Images that the model in training generates from training captions, and a sheet of them."""

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from PIL import Image, ImageDraw, ImageFont

from data.batches import in_batches
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images

COLUMNS = 8
PIXELS = 2**20  # generated at a time, beside all that a training holds: 16 images of 256 px
SMALLEST = 48  # pixels: a number has to fit under an image


def generate(
    pl_module: pl.LightningModule,
    requests: Sequence[Request],
    resolution: int,
    guidance_scale: float,
    num_inference_steps: int,
) -> list[Image.Image]:
    """One image per request, in full precision. Devices and training modes are restored afterwards."""
    pipe, device = pl_module.pipe, pl_module.device
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    before = [(next(part.parameters()).device, part.training) for part in parts]
    for part in parts:
        part.to(device).eval()
    images = []
    batch_size = max(1, PIXELS // resolution**2)
    with torch.autocast(device.type, enabled=False):
        for batch in in_batches(requests, batch_size):
            images += make_images(pipe, device, batch, resolution, guidance_scale, num_inference_steps)[0]
    for part, (earlier, training) in zip(parts, before, strict=True):
        part.to(earlier).train(training)
    return images


def sheet(
    training: Sequence[Image.Image],
    generated: Sequence[Image.Image],
    similarity: Sequence[float],
    threshold: float,
    title: str = "",
) -> Image.Image:
    """Training image, generated image and similarity, one above the other; above the threshold in red.

    Eight columns, then the next rows; the title is the last line. Images too small to carry a number are
    enlarged, pixel by pixel.
    """
    resolution = training[0].width * -(-SMALLEST // training[0].width)
    size = max(12, resolution // 6)
    font, strip = ImageFont.load_default(size), round(size * 1.4)
    columns = min(COLUMNS, len(training))
    tall, rows, width = 2 * resolution + strip, -(-len(training) // columns), columns * resolution
    out = Image.new("RGB", (width, rows * tall + (strip if title else 0)), "white")
    draw = ImageDraw.Draw(out)
    for number, (original, image, value) in enumerate(zip(training, generated, similarity, strict=True)):
        x, y = number % columns * resolution, number // columns * tall
        for row, picture in enumerate((original, image)):
            out.paste(picture.resize((resolution,) * 2, Image.Resampling.NEAREST), (x, y + row * resolution))
        color = "red" if value > threshold else "black"
        at = (x + resolution / 2, y + 2 * resolution + strip / 2)
        draw.text(at, "n/a" if value != value else f"{value:.2f}", color, font, anchor="mm")
    if title:
        fitting = ImageFont.load_default(max(6, size * min(1, 0.95 * width / draw.textlength(title, font))))
        draw.text((width / 2, rows * tall + strip / 2), title, "black", fitting, anchor="mm")
    return out
