"""`doctor` against what really is here: a model, a source, a disk, a cache, a key; and what is not."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from infer.__main__ import main
from infer.doctor import checks, machine


@pytest.fixture
def lines(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, dict[str, str]]]:
    """Run the command; the exit code, and its line (the last one) of each subject."""

    def run(*options: str) -> tuple[int, dict[str, str]]:
        capsys.readouterr()
        code = main(["doctor", "--out", str(tmp_path / "runs"), *options])
        out, err = capsys.readouterr()
        rows = {line[8:].split("  ")[0].strip(): line for line in out.splitlines()}
        assert (
            bool(code) == any(line.startswith("BROKEN") for line in rows.values()) == ("to be mended" in err)
        )
        return code, rows

    return run


def test_a_machine_on_which_all_works(lines, tiny_pipeline: Path, tiny_shards: Path, tmp_path: Path) -> None:
    code, rows = lines("--pipeline", str(tiny_pipeline), "--sources", str(tiny_shards))
    assert code == 0
    assert set(rows) == {"packages", "gpu", "nccl", "model", "data", "disk", "cache", "wandb", "slurm"}
    assert f"torch {torch.__version__}" in rows["packages"]
    assert "'s0' is 16x16 px, 'red square'" in rows["data"]
    assert not (tmp_path / "runs").exists()  # it looks, and makes nothing


def test_what_is_missing_is_named_with_what_to_do(lines, tiny_shards: Path, tmp_path: Path) -> None:
    """All of it in one go, in the order of the options."""
    (tmp_path / "empty").mkdir()
    gone = str(tmp_path / "gone.tar")
    code, rows = lines("--pipeline", str(tmp_path / "empty"), "--sources", f"{tiny_shards},{gone}")
    assert code == 1
    assert rows["model"].startswith("BROKEN") and "lacks unet" in rows["model"]
    assert rows["data"].startswith("BROKEN") and "gone.tar" in rows["data"] and "data inspect" in rows["data"]


def test_a_source_whose_first_images_are_broken(lines, tmp_path: Path, tiny_shards: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.png").write_bytes(b"no image")
        (folder / f"{name}.txt").write_text("red square")
    code, rows = lines("--sources", str(folder))
    assert code == 1 and "no captioned image that can be read" in rows["data"]


def test_a_model_of_the_hub(
    lines, hub_cache: Callable, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cache; in the cache without its UNet; not in the cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub_cache("me/model", tiny_pipeline)
    code, rows = lines("--pipeline", "me/model")
    assert code == 0 and "in the cache" in rows["model"] and "hub cache" in rows
    for path in (tmp_path / "cache").rglob("unet/*.safetensors"):
        path.unlink()
    for name in ("me/model", "me/other"):
        code, rows = lines("--pipeline", name)
        assert code == 1 and "neither in the cache nor reachable" in rows["model"]
        assert f"hf download {name}" in rows["model"]


def test_a_disk_that_is_too_small_for_two_checkpoints(
    lines, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exported model and two checkpoints: weights, average and two moments of the UNet, float32."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    sizes = {name: sum(w.numel() for w in getattr(pipe, name).parameters()) for name in ("unet", "vae")}
    sizes["text_encoder"] = sum(w.numel() for w in pipe.text_encoder.parameters())
    needed = checks.checkpoint_bytes(str(tiny_pipeline))
    assert needed == 4 * sum(sizes.values()) + 32 * sizes["unet"]
    Usage = namedtuple("Usage", "total used free")
    for free, broken in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(1 << 40, 0, free))
        [found] = checks.disk("disk", Path("outputs"), needed)
        assert found.broken == broken and ("free some" in found.text) == broken
    assert lines("--pipeline", str(tiny_pipeline))[0] == 1


def test_a_folder_in_which_nothing_can_be_written() -> None:
    """/proc takes no file, whoever asks."""
    [found] = checks.disk("disk", Path("/proc/runs"), 0)
    assert found.broken and "choose another folder" in found.text


def test_the_mode_of_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As set; else by whether there is a key, which is never shown."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "WANDB_MODE=offline" in next(machine.wandb()).text
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "no key: `wandb login`" in next(machine.wandb()).text
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert next(machine.wandb()).text == "a key is set: --wandb online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert "no key" in next(machine.wandb()).text
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert next(machine.wandb()).text == "a key is set: --wandb online"


def test_packages_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [*machine.packages()]
    assert [each.broken for each in found] == [False]
    monkeypatch.setattr(machine, "version", lambda name: "0.1")
    assert "diffusers 0.1, not <0.43,>=0.42" in [*machine.packages()][-1].text
    assert [*machine.packages()][-1].broken


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can be used")
def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: H100'\n")
    command.chmod(0o755)
    assert not [found for found in machine.devices() if found.broken]
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    [found] = machine.devices()
    assert found.broken and "there is one, but torch" in found.text


def test_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None; a controller that does not answer; partitions; inside a job."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "torchrun" in next(machine.slurm()).text
    for name, text in {"sbatch": "echo slurm 23.11", "sinfo": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    assert next(machine.slurm()).text == "slurm 23.11: no answer of its controller: see sinfo"
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'gpu* up, 4 nodes, time limit 1-00:00:00, gpu:8'\n")
    assert "slurm 23.11: gpu* up, 4 nodes" in next(machine.slurm()).text
    for name, value in {"JOB_ID": "7", "NTASKS": "16", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert next(machine.slurm()).text == "job 7: 16 tasks on 2 nodes"
