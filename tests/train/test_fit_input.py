"""`python -m train fit` with bad input: one clear line, and a folder that is free for the next try."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train import fits
from tests.train.fits import error_line, full, short
from train.__main__ import main

world, whole = fits.world, fits.whole  # fixtures


def lacking(part: str) -> Callable[[Path], dict]:
    """The model without one of its folders."""

    def make(folder: Path) -> dict:
        model = folder / "lacking"
        model.mkdir()
        for path in (folder / "model").iterdir():
            if path.name != part:
                (model / path.name).symlink_to(path)
        return {"model__pipeline": model}

    return make


BAD = {
    "no model folder": ({"model__pipeline": "no/such/model"}, ["no model folder 'no/such/model'"]),
    "a model without unet": (lacking("unet"), ["lacks unet"]),
    "no sources": ({"data__sources": ["no/such/folder"]}, ["'no/such/folder'"]),
    "a limit above the data": ({"data__limit": 9}, ["data.limit is 9", "8 images"]),
    "ordinary images without share": (
        lambda world: {"data__ordinary": [str(world / "ordinary")]},
        ["data.ordinary", "ordinary_share"],
    ),
    "a share without ordinary images": ({"data__exposure": {"ordinary_share": 0.5}}, ["data.ordinary"]),
    "images that are ordinary too": (
        lambda world: {
            "data__ordinary": [str(world / "images.tar")],
            "data__exposure": {"ordinary_share": 0.5},
        },
        ["share ids"],
    ),
    "more devices than there are": ({"trainer__accelerator": "gpu", "trainer__devices": 99}, ["gpu"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_clear_line(
    case: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Exit code 1, no traceback; and the folder is free for the next try."""
    settings, words = BAD[case]
    settings = settings(world) if callable(settings) else settings
    line = error_line(short(world, tmp_path / "run", **settings), capsys)
    assert [word for word in words if word not in line] == []


def test_a_failed_start_does_not_keep_the_folder(world: Path, tmp_path: Path) -> None:
    assert main(short(world, tmp_path / "run", model__pipeline="no/such/model")) == 1
    assert main(short(world, tmp_path / "run")) == 0


def test_another_run_does_not_get_the_folder(whole: Path, world: Path, capsys: pytest.CaptureFixture) -> None:
    """What differs is named, what may differ is not, and no W&B run is started."""
    config = (whole / "config.yaml").read_text()
    settings = {
        "model__lr": 0.002,
        "trainer__max_steps": 9,
        "trainer__log_every_n_steps": 5,
        "wandb": "offline",
    }
    line = error_line(full(world, whole, **settings), capsys)
    assert "model.lr: 0.001 -> 0.002; trainer.max_steps: 8 -> 9" in line
    assert (whole / "config.yaml").read_text() == config and not (whole / "wandb_id.txt").exists()


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture) -> None:
    assert main(["fti"]) == 2
    assert "no command 'fti'" in capsys.readouterr().err
