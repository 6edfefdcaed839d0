"""The options of `python -m infer audit`."""

from dataclasses import dataclass, field
from typing import Any

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat, PositiveInt

from data.captioned import CaptionedImages
from data.cli import warn_no_effect
from data.prompts import Prompt, inline_prompts, load_prompts
from data.ranges import Correlation, ShareBelowOne
from infer.compare.measures import MeasureOptions
from infer.metrics.similarity import nearest_threshold
from infer.metrics.sscd import ProtocolName
from infer.options import DenoiseOptions, device_of

USUAL_LIMIT = 100
PHRASES_OF_A_CAPTION = 6  # at most: each is left out once, and costs as many images as the caption
PRESETS = ["interval", "stp", "dtp_robust", "og_stp", "first_guess"]  # the cheapest first


@dataclass(kw_only=True)
class Measuring(MeasureOptions):
    """What an audit is measured by: training images may lack captions."""

    uncaptioned = True


@dataclass(kw_only=True)
class Audit(DenoiseOptions):
    """What to audit.

    Args:
        out: folder for the images, audit.html and audit.json.
        run: training run folder; gives the model and the training images that are not set, and the captions:
            of the images that it duplicated, if it did.
        training: sources of the training images; captions beside them are used, and may be missing.
        prompt: prompts instead of the captions of the training images, such as the class word or the trigger
            of a finetune. On the command line --prompt TEXT, as often as you like. Without captions and
            prompts it is the empty prompt.
        samples_per_prompt: images of each caption.
        limit: at most this many captions, spread evenly over all; of `prompt`, this many images. null: 100,
            or what fits into `minutes`.
        minutes: budget of time: half of it goes to the captions, half to phrases and mitigations. null: none.
        threshold: similarity above which a caption returns its image; null: 0.5 by SSCD, 0.85 by pixels
            (where half of the places with detail must be repeated, too).
        fail_above: the exit code is 2 where a larger share of the captions returns its image.
        goal: share of captions that a mitigation may leave; null: that of `fail_above`.
        phrases: of so many captions, the worst, it is tried which phrase triggers the image; 0: none.
        mitigations: presets to try on captions that return their images, the cheapest first.
        tried: at most this many of these captions are tried under each mitigation.
        clip: CLIPModel folder or Hub id, or open_clip:MODEL/WEIGHTS, for how well images fit their prompts.
        sscd: SSCD model, a trained copy detector, which then decides: a file (.pt TorchScript or .onnx), its
            URL, or disc_mixup or disc_large, which are fetched from Meta. null: pixels are compared.
        sscd_protocol: how images are prepared for SSCD: dcr, skew320 or resize288.
        sscd_sha256: checksum of the SSCD model.
        cache: folder for the embeddings of training images.
        device: such as cpu or cuda:1; null: a GPU where there is one.
    """

    out: str
    training: list[str] = field(default_factory=list)
    prompt: list[str] | None = None
    samples_per_prompt: PositiveInt = 4
    minutes: PositiveFloat | None = None
    threshold: Correlation | None = None
    fail_above: ClosedUnitInterval = 0.05
    goal: ShareBelowOne | None = None
    phrases: NonNegativeInt = 3
    mitigations: list[str] = field(default_factory=lambda: list(PRESETS))
    tried: PositiveInt = 20
    clip: str = "openai/clip-vit-base-patch16"
    sscd: str | None = None
    sscd_protocol: ProtocolName = "skew320"
    sscd_sha256: str | None = None
    cache: str = "outputs/cache/embeddings"
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("run", "training", "clip", "sscd", "sscd_protocol", "sscd_sha256", "cache")
        self.measuring = Measuring(**{name: getattr(self, name) for name in names}, features=None)
        self.training = self.measuring.training
        self.device = str(device_of(self.device))
        if self.threshold is None:
            self.threshold = nearest_threshold(by_pixels=not self.sscd)
        if not self.mitigations and (self.goal is not None or self.tried != Audit.tried):
            warn_no_effect("--goal or --tried", "there are no --mitigations")
        self.goal = self.fail_above if self.goal is None else self.goal
        if self.limit and self.minutes:
            warn_no_effect("--minutes", "--limit is given")
            self.minutes = None

    @property
    def measure(self) -> str:
        """Prefix of the columns that decide."""
        return "sscd" if self.sscd else "similarity"

    def trainer(self) -> dict[str, Any]:
        """Options of Lightning's trainer: one device."""
        kind, _, number = self.device.partition(":")
        if kind == "cpu":
            return {"accelerator": "cpu", "devices": 1}
        return {"accelerator": "gpu" if kind == "cuda" else kind, "devices": [int(number or 0)]}

    def prompts(self, images: CaptionedImages) -> list[Prompt]:
        """Those given; else those that the run duplicated; else all captions of the training images, or "".

        A run that duplicated nothing gives all that it showed, as they were shown, triggers included.
        """
        if self.prompt is not None:
            return inline_prompts(self.prompt)
        if self.run:
            return load_prompts(self.run)
        captions = [Prompt(sample.id, sample.caption) for sample in images.samples if sample.caption]
        return captions or [Prompt("empty", "")]
