"""Row of scoring: images measured by pixels, a copy detector and CLIP, against the two networks alone."""

import io
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import CLIPModel, ResNetConfig, ResNetModel

from data.captioned import load_captioned
from data.emoji import SHARDS
from data.scenes import JUDGE
from infer.metrics.sscd import PROTOCOLS
from infer.score.command import score
from tests.bench.rows import Setting, Side, row

NETWORK = ResNetConfig()  # its defaults are a ResNet-50
WIDTH, BATCH, SIDE = 512, 32, 256  # numbers of a descriptor; images at a time; px of an image
RESOLUTION = PROTOCOLS["skew320"].resolution


class Detector(nn.Module):
    """SSCD's shape, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ResNetModel(NETWORK)
        self.head = nn.Linear(NETWORK.hidden_sizes[-1], WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x, return_dict=False)[1].flatten(1))


@cache
def detector_of(setting: Setting) -> str:
    path = str(setting.folder / "detector.pt")
    with torch.no_grad():
        torch.jit.trace(Detector().eval(), torch.zeros(1, 3, RESOLUTION, RESOLUTION)).save(path)
    return path


@row("score of images, whole command", "the networks alone")
def score_images(setting: Setting) -> tuple[Side, Side]:
    """Both return how many images were measured; the training images' own embeddings are in the cache."""
    samples = load_captioned(f"{SHARDS}/noto-00000.tar.gz").samples[: setting.images // 4]
    images, out = setting.folder / "images", setting.folder / "scores"
    images.mkdir(exist_ok=True)
    for number, sample in enumerate(samples):
        sample.rgb().resize((SIDE, SIDE)).save(images / f"{number:05d}-{Path(sample.caption).name}.png")
    options = {
        "images": images,
        "training": images,
        "out": out,
        "clip": JUDGE,
        "sscd": detector_of(setting),
        "cache": setting.folder / "embeddings",
        "device": setting.device,
    }

    def ours() -> int:
        with redirect_stdout(io.StringIO()):
            score([f"--{name}={value}" for name, value in options.items()])
        return int(pd.read_parquet(out / "samples.parquet")["sscd_top"].notna().sum())

    detector = torch.jit.load(detector_of(setting), map_location=setting.device).eval()
    judge = CLIPModel.from_pretrained(JUDGE, dtype=torch.float32).eval().to(setting.device)
    side, tokens = judge.config.vision_config.image_size, judge.config.text_config.max_position_embeddings

    @torch.no_grad()
    def theirs() -> int:
        for start in range(0, len(samples), BATCH):
            count = min(BATCH, len(samples) - start)
            detector(torch.zeros(count, 3, RESOLUTION, RESOLUTION, device=setting.device))
            judge.get_image_features(torch.zeros(count, 3, side, side, device=setting.device))
            judge.get_text_features(torch.ones(count, tokens, dtype=torch.long, device=setting.device))
        return len(samples)

    return ours, theirs
