"""Where a model's attraction basin ends: what to look at, and what was found."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jsonargparse.typing import PositiveInt
from PIL.Image import Image

from infer.denoising.hooks import Request
from infer.metrics.options import check_sscd_options
from infer.metrics.similarity import COPY_THRESHOLD
from infer.metrics.sscd import ProtocolName
from infer.options import DenoiseOptions, device_of, need, provenance_of

HELD = ("none", "opposite")  # what the scale is before a point: 0, or the negative one


@dataclass(kw_only=True)
class Basin(DenoiseOptions):
    """What to look at.

    Args:
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
        sscd: SSCD model for the similarity, as in compare; null: correlation of 32x32 RGB.
        sscd_protocol: how images are put to it, as in compare.
        sscd_sha256: checksum of the SSCD model.
        device: such as cpu or cuda:1; null: a GPU where there is one.
    """

    prompts: str | None = None
    training: list[str] = field(default_factory=list)
    others: str | None = None
    prompt_id: str | None = None
    points: list[float] = field(default_factory=lambda: [999, 900, 800, 700, 600, 500, 400, 0])
    opposite: float = -2.0
    limit: PositiveInt = 32
    rows: PositiveInt = 5
    sscd: str | None = None
    sscd_protocol: ProtocolName = "skew320"
    sscd_sha256: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.run:
            provenance, self.prompts = provenance_of(self.run), self.prompts or self.run
            self.training = self.training or [*provenance["sources"], *provenance["ordinary"]]
        super().__post_init__()
        need(self, "prompts", "training")
        if not self.points or min(self.points) < 0:
            raise ValueError(f"points are timesteps, one or more and none negative: not {self.points}")
        if self.opposite >= 0 or self.model.guidance_scale <= 0:
            raise ValueError("opposite must be a scale below 0, and guidance_scale one above 0")
        self.points = sorted(set(self.points), reverse=True)
        self.device = str(device_of(self.device))
        check_sscd_options(self)


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
                "share_above_05": (s.dropna() > COPY_THRESHOLD).mean(), "failed": int(s.isna().sum())}
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
