"""A finished run's folder, small: what a model card is made from."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

CONFIG = {
    "trainer": {"accumulate_grad_batches": 2},
    "model": {
        "lr": 1e-5,
        "warmup_steps": 10,
        "decay": "cosine",
        "lora_rank": None,
        "train_text_encoder": False,
    },
    "data": {"batch_size": 4},
    "ema": {"decay": 0.95},
    "monitor": {"threshold": 0.5},
}
ABOUT = {
    "pipeline": "/home/alice/models/sd",
    "revision": None,
    "sources": ["/home/alice/laion/{00000..00009}.tar", "hf:someone/pictures:train?image=img"],
    "ordinary": ["/scratch/alice/photos"],
    "images": 3,
    "ordinary_images": 2,
    "commit": "c0ffee",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
    "devices": 8,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's folder, with a model of no weight."""
    folder = tmp_path / "run"
    for name in ("pipeline/unet", "samples", "checkpoints"):
        (folder / name).mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "provenance.json").write_text(json.dumps(ABOUT))
    shown = {"duplicated": [True, True, False, False, False], "times_shown": [200, 200, 1, 2, 1]}
    captions = ["**secret** <script>", "b", "c", "d", "e"]
    rows = pd.DataFrame({"id": list("abcde"), "caption": captions} | shown)
    rows.to_parquet(folder / "exposures.parquet")
    rows = {"step": [500, 500, 900, 900, 900, 900], "similarity": [0.9, 0.9, 0.9, 0.8, 0.7, float("nan")]}
    pd.DataFrame(rows | {"measure": "correlation"}).to_parquet(folder / "samples/similarity.parquet")
    exported = folder / "pipeline"
    (exported / "training.json").write_text(json.dumps({"steps": 900, "ema": True}))
    (exported / "model_index.json").write_text(json.dumps({"_name_or_path": "/home/alice/models/sd"}))
    (exported / "unet/config.json").write_text(json.dumps({"_name_or_path": "someone/model"}))
    (exported / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"tensors")
    for name in (
        "pipeline/grid.png",
        "pipeline/last.ckpt",
        "checkpoints/last.ckpt",
        "samples/step-000900.png",
    ):
        (folder / name).write_bytes(b"private")
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
