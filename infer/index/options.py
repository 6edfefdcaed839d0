"""The options of `python -m infer index`, and of the guard."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jsonargparse.typing import PositiveInt

from data.cli import warn_no_effect
from data.files import read_object
from infer.denoising.hooks import GuidanceRule
from infer.index.guard import Guard
from infer.metrics.sscd import ProtocolName, check_sscd
from infer.options import device_of, need, provenance_of

USUAL_RESOLUTION = 512


@dataclass(kw_only=True)
class IndexOptions:
    """Which images, described by what.

    Args:
        out: file of the index, .safetensors.
        run: training run folder; gives the training images and the resolution that are not set.
        training: sources of the training images, as training takes them.
        resolution: width and height in pixels of the images that will be compared with them; null: that of
            `run`, else 512.
        sscd: SSCD model (.pt TorchScript or .onnx file, its URL, disc_mixup or disc_large); null: local
            correlation of 32x32 RGB, whose descriptors are small versions of the images.
        sscd_protocol: how images are prepared for SSCD: dcr, skew320 or resize288.
        sscd_sha256: checksum of the SSCD model.
        ids: whether the index names the images.
        cache: folder for the embeddings of training images.
        device: of SSCD, such as cpu or cuda:1; null: a GPU where there is one.
    """

    out: str
    run: str | None = None
    training: list[str] = field(default_factory=list)
    resolution: PositiveInt | None = None
    sscd: str | None = None
    sscd_protocol: ProtocolName = "skew320"
    sscd_sha256: str | None = None
    ids: bool = True
    cache: str | None = "outputs/cache/embeddings"
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.out.endswith(".safetensors"):
            raise ValueError(f"out is a .safetensors file, not {self.out!r}")
        if self.run:
            about = provenance_of(self.run)
            self.training = self.training or [*about["sources"], *about["ordinary"]]
            self.resolution = self.resolution or model_resolution(Path(self.run, "pipeline"))
        need(self, "training")
        check_sscd(self.sscd, self.sscd_sha256, self.sscd_protocol)
        self.device = str(device_of(self.device))
        self.resolution = self.resolution or USUAL_RESOLUTION


def model_resolution(pipeline: Path) -> int | None:
    """Of a model's images, from its configs."""
    unet, vae = (read_object(pipeline / part / "config.json") or {} for part in ("unet", "vae"))
    size, blocks = unet.get("sample_size"), vae.get("block_out_channels")
    return size * 2 ** (len(blocks) - 1) if isinstance(size, int) and blocks else None


@dataclass(kw_only=True)
class GuardOptions:
    """Makes images again that are too near to a training image, and refuses those that stay so.

    Args:
        index: file of `python -m infer index`; null: no guard.
        threshold: similarity above which an image is too near to a training image; null: 0.5 by SSCD, 0.85 by
            pixels.
        attempts: how often an image is made at most, the first time included.
        stronger: mitigation of further attempts, a preset or YAML file; null: that of the run. Their seed is
            another one in either case.
        sscd: SSCD model of an index that was built with one; null: Meta's, where the index names it.
    """

    index: str | None = None
    threshold: float | None = None
    attempts: PositiveInt = 3
    stronger: str | None = None
    sscd: str | None = None

    def guard(self, load: Callable[[str], Sequence[GuidanceRule]]) -> Guard | None:
        """The guard, if there is an index; `load` gives the rules of a preset."""
        if self.index is None:
            if asdict(self) != asdict(GuardOptions()):
                warn_no_effect("--guard.*", "there is no --guard.index")
            return None
        rules = load(self.stronger) if self.stronger else ()
        return Guard(self.index, self.threshold, self.attempts, rules, self.sscd)
