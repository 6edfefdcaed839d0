"""Where a model's attraction basin ends: what to look at, and what was found."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from PIL.Image import Image

from data.pipeline import check_pipeline
from infer.rules import Request
from infer.schedulers import Scheduler
from infer.similarity import check_sscd

COPY = 0.5  # an image above this similarity to its training image is a copy
SPACES = ("epsilon", "model_output")  # where the difference of the predictions is watched
HELD = ("none", "opposite")  # what the scale is before a point: 0, or the negative one


@dataclass
class Basin:
    """What to look at.

    Args:
        out: folder for the pictures and basin.json.
        run: training run folder; gives pipeline, prompts and training where these are not set.
        pipeline: model under test: diffusers folder, Hub id or .safetensors file.
        prompts: memorized prompts: prompt file or training run folder. An id names the training image.
        training: sources of the training images.
        others: ordinary prompts to set against the memorized ones: what `prompts` takes. A caption equal to
            a memorized one is left out.
        prompt_id: the memorized prompt of trace.png; null: the first.
        points: timesteps t, for full guidance on [t, 0]. One above the schedule's first timestep is ordinary
            guidance, one below its last is none.
        opposite: the negative scale before the transition.
        limit: so many memorized prompts, and as many others, each spread evenly over all there are.
        rows: prompts shown in sweep.png, spread evenly over those.
        seed: base seed; a prompt has the same noise at all points.
        scheduler: the pipeline's own, or another kind built from its config.
        num_inference_steps: denoising steps.
        guidance_scale: of classifier-free guidance, after the transition.
        resolution: side in pixels; null: the UNet's own.
        dtype: of the weights.
        batch_size: images per UNet call.
        sscd: SSCD model file for the similarity; null: correlation of 32x32 RGB.
        device: such as cpu or cuda:1; null: a GPU where there is one.
    """

    out: str
    run: str | None = None
    pipeline: str | None = None
    prompts: str | None = None
    training: list[str] = field(default_factory=list)
    others: str | None = None
    prompt_id: str | None = None
    points: list[float] = field(default_factory=lambda: [999, 900, 800, 700, 600, 500, 400, 0])
    opposite: float = -2.0
    limit: int = 32
    rows: int = 5
    seed: int = 0
    scheduler: Scheduler = "own"
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    resolution: int | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: int = 16
    sscd: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.run:
            about = Path(self.run) / "provenance.json"
            if not about.exists():
                raise FileNotFoundError(f"{self.run!r} is no training run: it has no provenance.json")
            provenance = json.loads(about.read_text())
            self.pipeline, self.prompts = self.pipeline or f"{self.run}/pipeline", self.prompts or self.run
            self.training = self.training or [*provenance["sources"], *provenance["ordinary"]]
        for name in ("pipeline", "prompts", "training"):
            if not getattr(self, name):
                raise ValueError(f"give --{name}, or --run with a training run folder")
        for name in ("limit", "rows", "batch_size", "num_inference_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.points or min(self.points) < 0:
            raise ValueError(f"points are timesteps, one or more and none negative: not {self.points}")
        if self.opposite >= 0 or self.guidance_scale <= 0:
            raise ValueError("opposite must be a scale below 0, and guidance_scale one above 0")
        self.points = sorted(set(self.points), reverse=True)
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_pipeline(self.pipeline)
        if self.sscd:
            check_sscd(self.sscd)
        try:
            torch.empty(0, device=self.device)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"device {self.device!r} is not here: {str(error).splitlines()[0]}") from error


@dataclass
class Findings:
    """All that the pictures show.

    Before a point the scale is held at 0 or is opposite; `held` is "none" or "opposite". Images and
    similarities are by prompt id, of the traced prompt alone where held is opposite.
    """

    basin: Basin
    memorized: list[Request]
    traced: Request
    others: list[Request]
    left_out: int  # other prompts with a memorized caption
    training: dict[str, Image]
    timesteps: list[float]
    images: dict[tuple[str, float], dict[str, Image]]  # by held and place
    similarity: dict[tuple[str, float], pd.Series]  # to the own training image; NaN: latents were not finite
    curves: dict[tuple[str, str], dict[str, np.ndarray]]  # by group (memorized, others) and held: (N, steps)
    fired: dict[tuple[str, str], dict[str, np.ndarray]]  # the same, by watched space: (N,), NaN where never

    def place(self, point: float) -> float:
        return place(point, self.timesteps)

    def by_point(self) -> pd.DataFrame:
        """Similarity with no guidance before each point."""
        rows = {t: self.similarity["none", self.place(t)] for t in self.basin.points}
        shown = {
            t: {"mean": s.mean(), "p10": s.quantile(0.1), "p90": s.quantile(0.9),
                "share_above_05": (s.dropna() > COPY).mean(), "failed": int(s.isna().sum())}
            for t, s in rows.items()
        }  # fmt: skip
        return pd.DataFrame.from_dict(shown, "index").rename_axis("timestep")

    def half_way(self) -> float | None:
        """The largest point whose mean lies half way down from ordinary guidance to none; None: no point."""
        high, low = (self.similarity["none", end].mean() for end in (math.inf, -math.inf))
        means = self.by_point()["mean"]
        return max(means.index[means <= (high + low) / 2], default=None) if high > low else None


def place(point: float, timesteps: Sequence[float]) -> float:
    """The point; inf where it means ordinary guidance, -inf where it means none."""
    return math.inf if point >= timesteps[0] else -math.inf if point < timesteps[-1] else point
