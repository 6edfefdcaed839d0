"""What `python -m infer score` measures: images that are there already."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from data.cli import warn_no_effect
from data.images.decoding import FORMATS
from infer.compare.measures import MeasureOptions
from infer.compare.score_images import read_samples
from infer.options import device_of
from infer.predict.claim import differences, read_config
from infer.predict.run_folder import inside

UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for a header
SAMPLING = (  # what must be the same for a difference to be the mitigation's
    "scheduler", "timestep_spacing", "num_inference_steps", "guidance_scale", "negative_prompt", "resolution",
)  # fmt: skip


@dataclass(kw_only=True)
class Scoring(MeasureOptions):
    """What to score: predict runs, or images of other tools.

    Args:
        runs: predict run folders, of the same prompts and seeds. Scores are put into their samples.parquet.
        images: folder of images of other tools, instead of `runs`. Training images need no captions then.
        prompts: table of the images' prompts, .csv or .tsv, with columns file_name and prompt; null: their
            file names without the numbers that count them.
        out: file for the table of all, .csv or .parquet; null: it is only shown. With `images` the folder
            for their scores and for the page that shows them beside their nearest training images.
        device: such as cpu or cuda:1; null: a GPU where there is one.
    """

    runs: list[str] = field(default_factory=list)
    images: str | None = None
    prompts: str | None = None
    out: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.device = str(device_of(self.device))
        if bool(self.images) == bool(self.runs):
            raise ValueError("give --runs, predict run folders, or --images, a folder of images")
        if self.images:
            self.uncaptioned = self.anywhere = True
            self.configs = {}
            if not self.out or self.out.endswith((".csv", ".parquet")):
                raise ValueError("give --out, a folder for the scores and the page of --images")
            self.runs = [self.out]
            return
        if self.prompts:
            warn_no_effect("--prompts", "runs have their prompts; it is for --images")
        if self.out and not self.out.endswith((".csv", ".parquet")):
            raise ValueError(f"out is a .csv or .parquet file, not {self.out!r}")
        for folder in self.runs:
            if not (Path(folder) / "samples.parquet").is_file():
                raise FileNotFoundError(f"{folder!r} is no finished predict run: it has no samples.parquet")
        self.configs = {run: read_config(Path(run)) for run in self.runs}
        sampling = {run: {key: config.get(key) for key in SAMPLING} for run, config in self.configs.items()}
        for run in self.runs[1:]:
            if changed := "; ".join(differences(sampling[self.runs[0]], sampling[run])):
                raise ValueError(
                    f"score {self.runs[0]} and {run} apart, they were sampled differently: {changed}"
                )

    def folders(self) -> dict[str, Path]:
        """The runs by mitigation; where several have the same one, the folder follows it."""
        if self.images:
            return {Path(self.images).name: Path(self.out)}
        mitigations = {run: config["mitigation"] for run, config in self.configs.items()}
        often = Counter(mitigations.values())
        return {
            name if often[name] == 1 else f"{name} ({run})": Path(run) for run, name in mitigations.items()
        }

    def notes(self) -> list[str]:
        """What the runs do not share."""
        models = sorted({config["pipeline"] for config in self.configs.values()})
        return [f"The runs are of different models: {', '.join(models)}"] if len(models) > 1 else []

    def resolution(self) -> int:
        """Width in pixels of the first image that can be read."""
        for run in self.runs:
            for image in read_samples(Path(run))["image"]:
                path = Path(image) if self.anywhere else inside(Path(run), image)
                with suppress(*UNREADABLE), Image.open(path, formats=FORMATS) as opened:
                    return opened.width
        raise ValueError(f"no image of {', '.join(self.runs)} can be read")
