"""`--hub.repo` from the fit to the Hub; a run that is finished is uploaded by the same command."""

from pathlib import Path

import pytest

from tests.callbacks import test_hub
from tests.train import fits
from tests.train.fits import short
from train.__main__ import main

world, hub = fits.world, test_hub.hub  # fixtures


def test_a_run_is_uploaded_once_it_is_finished(
    world: Path, tmp_path: Path, hub: dict, capsys: pytest.CaptureFixture
) -> None:
    """Without a repository only the card is written; a failed upload is made up for, and not repeated."""
    run = tmp_path / "run"
    assert main(short(world, run)) == 0
    assert "path/to/this/folder" in (run / "pipeline/README.md").read_text()
    assert not (run / "hub.json").exists()
    hub["broken"] = True
    assert main(short(world, run, hub__repo="me/x")) == 1
    assert "is complete, but not on the Hub" in capsys.readouterr().err
    hub["broken"] = False
    for _ in range(2):
        assert main(short(world, run, hub__repo="me/x")) == 0
    assert len(hub["commits"]) == 1
    assert "me/x" in (run / "pipeline/README.md").read_text()


def test_a_lora_is_uploaded_beside_the_model_it_is_fused_into(world: Path, tmp_path: Path, hub: dict) -> None:
    run = tmp_path / "run"
    assert main(short(world, run, hub__repo="me/y", model__lora_rank=2)) == 0
    sent = {line["value"]["path"] for line in hub["commits"][0][1:]}
    assert {"lora/pytorch_lora_weights.safetensors", "README.md"} <= sent
    assert not any(name.endswith((".ckpt", ".png")) for name in sent)
    lora = (run / "pipeline/lora/pytorch_lora_weights.safetensors").read_bytes()
    assert str(world).encode() not in lora


def test_a_public_repository_is_refused_before_any_training(
    world: Path, tmp_path: Path, hub: dict, capsys: pytest.CaptureFixture
) -> None:
    hub["repos"]["me/open"] = False
    assert main(short(world, tmp_path / "run", hub__repo="me/open")) == 1
    assert "me/open is public on the Hub" in capsys.readouterr().err
    assert not (tmp_path / "run/pipeline").exists()
