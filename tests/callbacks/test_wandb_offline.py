"""The file that an offline run leaves, for `wandb sync`, holds what was logged."""

import pandas as pd
import pytest

from tests.callbacks.wandb_file import read_run
from tests.conftest import CAPTIONS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_predict_run(predict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings, mitigation, model and commit; progress, the summary, and the first images."""
    for name in ("WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_TAGS"):
        monkeypatch.delenv(name, raising=False)
    options = [word for text in CAPTIONS[:3] for word in ("--prompt", text)]
    folder = predict(
        *options, "--mitigation", "stp", "--mitigation.timestep", "600", "--wandb", "offline",
        "--wandb_group", "g", "--wandb_tags", "a,b", "--batch_size", "2",
    )  # fmt: skip
    run, config, rows = read_run(folder)
    assert (run.project, run.run_group, [*run.tags]) == ("attraction-basin", "g", ["a", "b"])
    assert (run.run_id, run.display_name) == ((folder / "wandb_id.txt").read_text(), folder.name)
    assert config["label"] == "stp(timestep=600)" and config["num_inference_steps"] == 4
    assert {"git_commit", "pipeline_sha256", "prompts_sha256"} <= config.keys()
    progress = [row["images"] for row in rows if "seconds" in row]
    table = pd.read_parquet(folder / "samples.parquet")
    [summary] = [row for row in rows if "summary/images" in row]
    [shown] = [row for row in rows if row.get("images/_type") == "table-file"]
    assert progress == [2, 3] and summary["summary/images"] == shown["images/nrows"] == 3
    assert summary["summary/nfe_mean"] == table["nfe"].mean()
    assert shown["images/sha256"] and [*folder.glob(f"wandb/*/files/{shown['images/path']}")]
