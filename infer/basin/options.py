"""Options of `python -m infer basin`."""

from dataclasses import dataclass, field

from jsonargparse.typing import (
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveInt,
    restricted_number_type,
)

from data.cli import warn_no_effect
from infer.basin.critical_scale import Criterion
from infer.metrics.sscd import ProtocolName, check_sscd
from infer.options import DenoiseOptions, device_of, need, provenance_of

NegativeFloat = restricted_number_type("NegativeFloat", float, ("<", 0))
Levels = restricted_number_type("Levels", int, (">=", 2))


@dataclass(frozen=True, kw_only=True)
class CriticalScaleOptions:
    """How wide the basin of each image is: the noise level up to which the denoiser, iterated, keeps it.

    Args:
        images: how many training images to measure of each group, memorized or not, and of each doubling of
            the number of times that they were shown; 0: none.
        controls: source of captioned images that training never showed; they join those of `training`.
        levels: noise levels, evenly in their logarithm over the model's schedule.
        iterations: of the denoiser on itself at each level.
        tolerance: an image is kept while its latents have moved by at most this share of their norm.
        local_tolerance: the same at each location of the latents.
    """

    images: NonNegativeInt = 0
    controls: str | None = None
    levels: Levels = 24
    iterations: PositiveInt = Criterion().iterations
    tolerance: OpenUnitInterval = Criterion().tolerance
    local_tolerance: OpenUnitInterval = Criterion().local_tolerance

    @property
    def criterion(self) -> Criterion:
        return Criterion(self.iterations, self.tolerance, self.local_tolerance)


@dataclass(kw_only=True)
class Basin(DenoiseOptions):
    """Which prompts to explore, and where guidance starts.

    Args:
        prompts: memorized prompts: prompt file or training run folder. An id names the training image.
        training: sources of the training images.
        others: ordinary prompts to compare with: what `prompts` takes. Captions of memorized prompts are
            left out.
        prompt_id: the memorized prompt of trace.png; null: the first.
        points: timesteps t, for full guidance on [t, 0]. A point above the schedule's first timestep is
            ordinary guidance, a point below the last one is none.
        opposite: the negative scale before the transition.
        limit: at most this many prompts of each group, spread evenly over all of it.
        samples_per_prompt: noises per prompt; figures of single images show the first.
        rows: prompts shown in sweep.png, and images of each group in memory_map.png, spread evenly.
        sscd: SSCD model for the similarity, as in compare; null: local correlation of 32x32 RGB.
        sscd_protocol: preprocessing for SSCD, as in compare.
        sscd_sha256: checksum of the SSCD model.
        device: such as cpu or cuda:1; null: a GPU where there is one.
        critical_scale: how wide the basins are; off unless images are asked for.
    """

    prompts: str | None = None
    training: list[str] = field(default_factory=list)
    others: str | None = None
    prompt_id: str | None = None
    points: list[NonNegativeFloat] = field(default_factory=lambda: [999, 900, 800, 700, 600, 500, 400, 0])
    opposite: NegativeFloat = -2.0
    limit: PositiveInt = 32
    samples_per_prompt: PositiveInt = 1
    rows: PositiveInt = 5
    sscd: str | None = None
    sscd_protocol: ProtocolName = "skew320"
    sscd_sha256: str | None = None
    device: str | None = None
    critical_scale: CriticalScaleOptions = field(default_factory=CriticalScaleOptions)

    def __post_init__(self) -> None:
        if self.run:
            provenance, self.prompts = provenance_of(self.run), self.prompts or self.run
            self.training = self.training or [*provenance["sources"], *provenance["ordinary"]]
        super().__post_init__()
        need(self, "prompts", "training")
        if not self.points:
            raise ValueError("give at least one timestep as --points")
        if self.model.guidance_scale <= 0:
            raise ValueError("give a --model.guidance_scale above 0, for the guidance after a point")
        if not self.critical_scale.images and self.critical_scale != CriticalScaleOptions():
            warn_no_effect("--critical_scale.*", "--critical_scale.images is 0")
        self.points = sorted({float(point) for point in self.points}, reverse=True)
        self.device = str(device_of(self.device))
        check_sscd(self.sscd, self.sscd_sha256, self.sscd_protocol)
