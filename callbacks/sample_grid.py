"""Training images, and what the model in training makes of their captions: made, and drawn on one sheet."""

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from PIL import Image, ImageDraw, ImageFont

from data.batches import in_batches
from infer.denoising.hooks import Request
from infer.denoising.sampling import make_images

COLUMNS = 8
PIXELS = 2**20  # that are made at a time, beside all that a training holds: 16 images of 256 px
SMALLEST = 48  # pixels: a number has to fit under an image


def generate(
    pl_module: pl.LightningModule,
    requests: Sequence[Request],
    resolution: int,
    guidance_scale: float,
    num_inference_steps: int,
) -> list[Image.Image]:
    """One image per request, in full precision; each part is where it was, and as it was, afterwards."""
    pipe, device = pl_module.pipe, pl_module.device
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    before = [(next(part.parameters()).device, part.training) for part in parts]
    for part in parts:
        part.to(device).eval()
    made = []
    batch_size = max(1, PIXELS // resolution**2)
    with torch.autocast(device.type, enabled=False):
        for batch in in_batches(requests, batch_size):
            made += make_images(pipe, device, batch, resolution, guidance_scale, num_inference_steps)[0]
    for part, (place, training) in zip(parts, before, strict=True):
        part.to(place).train(training)
    return made


def sheet(
    training: Sequence[Image.Image],
    made: Sequence[Image.Image],
    similarity: Sequence[float],
    threshold: float,
) -> Image.Image:
    """Training image, generation and number, one above the other; those above the threshold in red.

    Eight columns, then the next rows. Images too small to carry a number are enlarged, pixel by pixel.
    """
    side = training[0].width * -(-SMALLEST // training[0].width)
    size = max(12, side // 6)
    font, strip = ImageFont.load_default(size), round(size * 1.4)
    columns = min(COLUMNS, len(training))
    tall, rows = 2 * side + strip, -(-len(training) // columns)
    out = Image.new("RGB", (columns * side, rows * tall), "white")
    draw = ImageDraw.Draw(out)
    for number, (original, generation, value) in enumerate(zip(training, made, similarity, strict=True)):
        x, y = number % columns * side, number // columns * tall
        for row, image in enumerate((original, generation)):
            out.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y + row * side))
        colour = "red" if value > threshold else "black"
        at = (x + side / 2, y + 2 * side + strip / 2)
        draw.text(at, f"{value:.2f}", colour, font, anchor="mm")
    return out
