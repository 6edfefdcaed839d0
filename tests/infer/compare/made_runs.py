"""A made training run to compare mitigations on: what the tests of `compare` share."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.conftest import CAPTIONS, random_pipeline


@pytest.fixture(scope="module")
def arguments(
    tiny_pipeline: Path, tiny_shards: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Comparison of a run that duplicated two of six images and never showed the other two of the shard."""
    run = tmp_path_factory.mktemp("training")
    model = random_pipeline()
    torch.nn.init.normal_(model.unet.conv_out.bias)
    model.save_pretrained(run / "pipeline")
    about = {"pipeline": str(tiny_pipeline), "sources": [str(tiny_shards)], "ordinary": []}
    (run / "provenance.json").write_text(json.dumps(about))
    pd.DataFrame(
        {"id": [f"s{n}" for n in range(8)], "caption": CAPTIONS, "duplicated": [True] * 2 + [False] * 6,
         "times_shown": [9, 9, 1, 1, 1, 1, 0, 0]}
    ).to_parquet(run / "exposures.parquet")  # fmt: skip
    return [
        "compare", "--run", str(run), "--clip", str(tiny_clip), "--model.num_inference_steps", "8",
        "--samples_per_prompt", "2", "--mitigations", "none,stp,dtp", "--cache", str(run / "cache"),
        "--trainer.accelerator", "cpu", "--trainer.devices", "1",
    ]  # fmt: skip
