"""A training run and a comparison of mitigations on it, which the tests of `compare` and `score` share."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from infer.metrics.clip_score import ClipScore
from tests.conftest import CAPTIONS, random_pipeline


@pytest.fixture(scope="session")
def compare_args(
    tiny_pipeline: Path, tiny_shards: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Comparison of a run that duplicated two of six images and never showed the other two of the shard."""
    run = tmp_path_factory.mktemp("training")
    model = random_pipeline()
    torch.nn.init.normal_(model.unet.conv_out.bias)
    model.save_pretrained(run / "pipeline")
    about = {"pipeline": str(tiny_pipeline), "sources": [str(tiny_shards)], "ordinary": []}
    (run / "provenance.json").write_text(json.dumps(about))
    rows = {"id": [f"s{n}" for n in range(8)], "caption": CAPTIONS, "duplicated": [True] * 2 + [False] * 6}
    pd.DataFrame(rows | {"times_shown": [9, 9, 1, 1, 1, 1, 0, 0]}).to_parquet(run / "exposures.parquet")
    return [
        "compare", "--run", str(run), "--clip", str(tiny_clip), "--model.num_inference_steps", "8",
        "--samples_per_prompt", "2", "--mitigations", "none,stp,dtp", "--cache", str(run / "cache"),
        "--trainer.accelerator", "cpu", "--trainer.devices", "1",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def clip(tiny_clip: Path) -> ClipScore:
    return ClipScore(str(tiny_clip))


@pytest.fixture(scope="session")
def options(compare_args: list[str]) -> dict[str, str]:
    """The values of these arguments by option."""
    return dict(zip(compare_args[1::2], compare_args[2::2], strict=True))


@pytest.fixture(scope="session")
def finished(compare_args: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison folder, for reading."""
    from infer.__main__ import main

    out = tmp_path_factory.mktemp("comparisons") / "finished"
    assert main([*compare_args, "--out", str(out)]) == 0
    return out
