"""What a training run's folder holds when the run claims it."""

from pathlib import Path

import pytest
import yaml

from train.run_folder.claim import claim


def test_a_config_keeps_no_secret(tmp_path: Path) -> None:
    url = "https://user:word@host/sscd.pt?X-Amz-Signature=it's"
    with claim(tmp_path, yaml.safe_dump({"sscd": {"path": url, "sha256": None}, "lr": 1e-5})):
        pass
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config == {"sscd": {"path": "https://host/sscd.pt", "sha256": None}, "lr": 1e-5}


def test_a_file_without_settings_is_named(tmp_path: Path) -> None:
    """Of a run that has a checkpoint: whether it is the same cannot be known."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"")
    (tmp_path / "config.yaml").write_text("a: [")
    with (
        pytest.raises(ValueError, match=f"{tmp_path}/config.yaml holds no settings"),
        claim(tmp_path, "a: 1"),
    ):
        pass
    assert (tmp_path / "config.yaml").read_text() == "a: ["


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f"checkpoints/.{'0f' * 16}.ckpt", tmp_path / f".{'1e' * 16}/unet/config.json"
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    with claim(tmp_path, "a: 1\n"):
        pass
    assert {path.name for path in tmp_path.rglob("*")} == {"checkpoints", "config.yaml"}
