"""What `python -m infer score` measures: predict runs that are there already."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from PIL import Image

from infer.measure_options import MeasureOptions
from infer.model_options import device_of


@dataclass(kw_only=True)
class Scoring(MeasureOptions):
    """What to score.

    Args:
        runs: predict run folders, of the same prompts and seeds. Scores are put into their samples.parquet.
        out: file for the table of all, .csv or .parquet; null: it is only shown.
        device: such as cpu or cuda:1; null: a GPU where there is one.
    """

    runs: list[str]
    out: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.device = str(device_of(self.device))
        if self.out and not self.out.endswith((".csv", ".parquet")):
            raise ValueError(f"out is a .csv or .parquet file, not {self.out!r}")
        for folder in self.runs:
            if not (Path(folder) / "samples.parquet").is_file():
                raise FileNotFoundError(f"{folder!r} is no finished predict run: it has no samples.parquet")
        if not self.runs:
            raise ValueError("give --runs, predict run folders")
        names = [*self.folders()]
        if len(names) < len(self.runs):
            raise ValueError(f"two runs are of one mitigation: {', '.join(self.runs)}")

    def folders(self) -> dict[str, Path]:
        """The runs by their mitigation."""
        configs = {Path(run): yaml.safe_load((Path(run) / "config.yaml").read_text()) for run in self.runs}
        return {config["mitigation"]: folder for folder, config in configs.items()}

    def side(self) -> int:
        """Of the first image that can be read, in pixels."""
        for run in self.runs:
            for path in pd.read_parquet(Path(run) / "samples.parquet", columns=["image"])["image"]:
                try:
                    with Image.open(Path(run) / path) as image:
                        return image.width
                except OSError:
                    continue
        raise ValueError(f"no image of {', '.join(self.runs)} can be read")

    def write(self, table: pd.DataFrame) -> None:
        if self.out:
            Path(self.out).parent.mkdir(parents=True, exist_ok=True)
            write = table.to_csv if self.out.endswith(".csv") else table.to_parquet
            write(self.out, index=False)
