"""`metrics.csv` of a training run: no kill, no full disk and no restart loses a row of an earlier step."""

import io
import shutil
from pathlib import Path

import pandas as pd
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from data.files import write_atomically


class WholeRows(ExperimentWriter):
    """Lightning's writer, which empties the file to give it a column more; this one replaces it at once."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = self.metrics_file_path

        def write(part: Path) -> None:
            shutil.copyfile(path, part)
            self.metrics_file_path = str(part)
            super(WholeRows, self)._rewrite_with_new_header(fieldnames)

        try:
            write_atomically(Path(path), write)
        finally:
            self.metrics_file_path = path


class MetricsLogger(CSVLogger):
    """Write `metrics.csv` into the run folder."""

    def __init__(self, folder: Path):
        super().__init__(folder, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> WholeRows:
        if self._experiment is None:
            self._experiment = WholeRows(log_dir=self.log_dir)
        return self._experiment


def keep_metrics(folder: Path) -> None:
    """Move the interrupted start's rows to `metrics-before.csv`: Lightning's CSV logger would delete them."""
    path, before = folder / "metrics.csv", folder / "metrics-before.csv"
    if tables := read_metrics(before, path):
        write_atomically(before, lambda part: pd.concat(tables).to_csv(part, index=False))
    path.unlink(missing_ok=True)


def join_metrics(folder: Path) -> None:
    """Write `metrics.csv` with one row per step of all starts; of two values the later one counts."""
    path, before = folder / "metrics.csv", folder / "metrics-before.csv"
    tables = read_metrics(before, path)
    if len(tables) > 1 or tables and (before.exists() or not tables[0]["step"].is_unique):
        rows = pd.concat(tables).groupby("step", as_index=False).last()
        write_atomically(path, lambda part: rows[sorted(rows.columns)].to_csv(part, index=False))
    before.unlink(missing_ok=True)


def read_metrics(*paths: Path) -> list[pd.DataFrame]:
    """The tables that exist and have rows; a last row that was cut is left out."""
    texts = [path.read_text() for path in paths if path.exists()]
    whole = [text[: text.rfind("\n") + 1] for text in texts]
    return [pd.read_csv(io.StringIO(text), on_bad_lines="skip") for text in whole if text.strip()]
