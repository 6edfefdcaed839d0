"""What a training run's folder holds when the run claims it."""

from pathlib import Path

import yaml

from train.run_folder import claim


def test_a_config_keeps_no_secret(tmp_path: Path) -> None:
    url = "https://user:word@host/sscd.pt?X-Amz-Signature=it's"
    with claim(tmp_path, yaml.safe_dump({"sscd": {"path": url, "sha256": None}, "lr": 1e-5})):
        pass
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config == {"sscd": {"path": "https://host/sscd.pt", "sha256": None}, "lr": 1e-5}


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f"checkpoints/.{'0f' * 16}.ckpt", tmp_path / f".{'1e' * 16}/unet/config.json"
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    with claim(tmp_path, "a: 1\n"):
        pass
    assert {path.name for path in tmp_path.rglob("*")} == {"checkpoints", "config.yaml"}
