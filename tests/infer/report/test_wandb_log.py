import json
from pathlib import Path

import pandas as pd
import pytest
import wandb

from data.files import write_json
from infer.report.wandb_log import log_to_wandb
from tests.infer.report.folders import swept, three


class Run:
    """Records what is logged."""

    def __init__(self):
        self.logged, self.summary = {}, {}

    def log(self, values):
        self.logged |= values


def test_tables_plots_gallery_and_numbers_are_logged(tmp_path: Path):
    run, about = Run(), swept(tmp_path) / "comparison.json"
    both = {"mitigations": ["scenes/stp(timestep=500)"]}  # by itself, and a sweep's point
    write_json(about, json.loads(about.read_text()) | both)
    log_to_wandb(tmp_path, run, rows=5)
    table = pd.read_parquet(tmp_path / "comparison.parquet")
    assert run.logged["table"].get_column("mitigation") == table["mitigation"].tolist()
    assert set(run.logged["table_memorized"].get_column("similarity_own_mean")) == {0.111}
    plots = [name for name, value in run.logged.items() if isinstance(value, wandb.Image)]
    assert {"plots/frontier", "plots/sweep1", "plots/distributions"} <= set(plots)
    gallery = run.logged["gallery_5_of_12"]
    assert len(gallery.data) == 5 and gallery.columns[2:5] == ["training image", "none", "stp"]
    assert len(gallery.columns) == len(set(gallery.columns)) == 3 + 6
    assert all(isinstance(value, wandb.Image) for value in gallery.data[0][2:])
    assert run.summary["og_stp/similarity_own_mean"] == 0.3
    assert run.summary["stp/similarity_own_p95_published"] == 0.286
    assert "og_stp/fid" not in run.summary and "og_stp/fid_published" not in run.summary


def test_a_missing_image_leaves_a_gap(tmp_path: Path):
    run = Run()
    log_to_wandb(three(tmp_path), run)
    gallery = run.logged["gallery"]
    assert len(gallery.data) == 6
    assert sum(row.count(None) for row in gallery.data) == 1 + 2  # one lost, and the fox's two rows


def test_an_offline_run_holds_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its copies of the images lie in the comparison's folder, too."""
    folder = three(tmp_path / "compare")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", "to be restored")
    monkeypatch.delenv("WANDB_DATA_DIR")
    with wandb.init(mode="offline", dir=tmp_path, project="test") as run:
        log_to_wandb(folder, run)
        files, summary = Path(run.dir), dict(run.summary)
    assert summary["og<b>stp/similarity_own_mean"] == 0.413
    assert summary["table"]["_type"] == summary["gallery"]["_type"] == "table-file"
    assert (files / summary["plots/frontier"]["path"]).is_file()
    stored = json.loads((files / summary["gallery"]["path"]).read_text())
    assert len([*(folder / "wandb/artifacts/staging").iterdir()]) >= 6 * 3
    assert len(stored["data"]) == 6 and stored["data"][0][2:] == ["Image"] * 4
