"""Training run folders with a random model, as far as the commands read them."""

import json
from pathlib import Path

import pandas as pd
import torch

from tests.conftest import CAPTIONS, random_pipeline


def save_model(folder: Path, prediction_type: str = "v_prediction", **scheduler: object) -> Path:
    """A model on which guidance matters; `scheduler` changes its scheduler's config."""
    pipe = random_pipeline(prediction_type)
    torch.nn.init.normal_(pipe.unet.conv_out.weight, std=0.3)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **scheduler)
    pipe.save_pretrained(folder)
    return folder


def save_training_run(folder: Path, source: Path) -> Path:
    """A run that duplicated the first four of the eight images in `source`."""
    save_model(folder / "pipeline")
    provenance = {"pipeline": "", "sources": [str(source)], "ordinary": []}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    rows = {"id": [f"s{n}" for n in range(8)], "caption": CAPTIONS, "duplicated": [True] * 4 + [False] * 4}
    pd.DataFrame(rows | {"times_shown": 1}).to_parquet(folder / "exposures.parquet")
    return folder
