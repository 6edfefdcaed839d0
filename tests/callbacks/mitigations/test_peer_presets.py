"""Every preset runs on the bundled model."""

from pathlib import Path

import pandas as pd
import pytest

from infer.__main__ import main
from tests.conftest import BASE

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, SCALE = 4, 3.0
SHARD = "data/emoji/shards/fluent-emoji-00000.tar.gz"
COST = {  # evaluations of an image
    "interval": 7, "linear": 8, "cads": 8, "rescale": 8, "mambo_g": 8, "apg": 8, "cfg_zero": 8,
    "tcfg": 8, "divin": 10, "pads": 8, "pads_replace": 8, "guard": 12, "broken_mild": 8, "broken_strong": 8,
    "amg": None,
}  # fmt: skip


@pytest.mark.parametrize("preset", COST)
def test_the_preset_runs(preset: str, tmp_path: Path) -> None:
    """Few steps, two prompts, into finite images that cost what the method says."""
    own = {
        "amg": ["--mitigation.training", SHARD, "--mitigation.cache", str(tmp_path / "cache")],
        "broken_mild": ["--mitigation.count", "4"], "broken_strong": ["--mitigation.count", "4"],
    }  # fmt: skip
    arguments = [
        "predict", "--model.pipeline", str(BASE), "--model.guidance_scale", str(SCALE),
        "--model.num_inference_steps", str(STEPS), "--out", str(tmp_path / "run"), "--limit", "2",
        "--trainer.accelerator", "cpu", "--prompts", SHARD,
        "--mitigation", preset, *own.get(preset, []),
    ]  # fmt: skip
    assert main(arguments) == 0
    rows = pd.read_parquet(tmp_path / "run/samples.parquet")
    assert len(rows) == 2 and rows["failed_step"].isna().all()
    assert rows["gradient_passes"].tolist() == [2 if preset == "divin" else 0] * 2
    if COST[preset] is not None:
        assert rows["nfe"].tolist() == [COST[preset]] * 2
