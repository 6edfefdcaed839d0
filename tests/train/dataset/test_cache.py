"""The cache of latents and embeddings: what it holds, when it is used, and that training cannot tell."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import webdataset as wds
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.train import fits
from tests.train.fits import full, run_process, short, spied, unet, write_folder
from train.__main__ import main
from train.dataset import cache
from train.dataset import planned as latents
from train.dataset.cache import Shards
from train.dataset.encoders import text_key, vae_key

world, whole = fits.world, fits.whole  # fixtures


def stored(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """The only cache of that kind, of one shard."""
    (path,) = folder.glob(f"{kind}-*/*.safetensors")
    return load_file(path)


def texts(*captions: str) -> list[str]:
    """In the order in which they are cached."""
    return sorted(set(captions))


def test_captions_are_dropped(whole: Path, world: Path, tiny_pipeline: Path) -> None:
    """A quarter of the embeddings is the empty prompt's, all others are their caption's."""
    batches = spied(world / "spied")
    given = torch.cat([batch["embedding"] for batch in batches])
    index = torch.cat([batch["index"] for batch in batches])
    captions = pd.read_parquet(whole / "exposures.parquet")["caption"]
    positions = [texts(*captions).index(captions[number]) for number in index.tolist()]
    own = stored(world / "cache", "captions")["embedding"][positions].float()
    with torch.no_grad():
        nothing = StableDiffusionPipeline.from_pretrained(tiny_pipeline).encode_prompt("", "cpu", 1, False)[0]
    empty = ((given - nothing).abs().amax((1, 2)) < 1e-3).numpy()
    assert 0.1 < empty.mean() < 0.45
    torch.testing.assert_close(given[~empty], own[~empty])


def test_the_cache_holds_what_the_pipeline_encodes(whole: Path, world: Path, tiny_pipeline: Path) -> None:
    """The mirrored image too; images in the order of the data, captions once each."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    images, captions = (stored(world / "cache", kind) for kind in ("latents", "captions"))
    assert images["mean"].shape == images["std"].shape == (9, 2, 4, 8, 8)
    pixels = torch.from_numpy(np.array(Image.open(world / "ordinary/o2.png"))).permute(2, 0, 1)[None]
    known = pd.read_parquet(whole / "exposures.parquet")["caption"]
    with torch.no_grad():
        for variant, image in enumerate((pixels, pixels.flip(-1))):
            posterior = pipe.vae.encode(image / 127.5 - 1).latent_dist
            for name in ("mean", "std"):
                expected = getattr(posterior, name)[0] * pipe.vae.config.scaling_factor
                torch.testing.assert_close(images[name][6, variant].float(), expected, atol=1e-3, rtol=1e-3)
        prompt = pipe.encode_prompt("ordinary 2", "cpu", 1, False)[0][0]
    embedding = captions["embedding"][texts(*known).index("ordinary 2")]
    torch.testing.assert_close(embedding.float(), prompt, atol=2e-3, rtol=2e-3)


def test_training_cannot_tell_where_its_numbers_come_from(world: Path, tmp_path: Path) -> None:
    """Cached, or encoded for each batch, or read by another process: the same losses and weights.

    float32 has all digits; float16, which is the default, is rounded.
    """
    settings = {"trainer__max_steps": 3, "monitor__every_n_steps": 100}
    runs = {
        "live": {"data__cache": "null"},
        "float32": {"data__cache": tmp_path / "cache", "data__cache_dtype": "float32", "data__workers": 1},
        "float16": {"data__cache": tmp_path / "cache"},
    }
    for name, given in runs.items():
        assert main(full(world, tmp_path / name, **(settings | given))) == 0
    losses = {name: pd.read_csv(tmp_path / name / "metrics.csv")["loss"].to_numpy() for name in runs}
    np.testing.assert_allclose(losses["float32"], losses["live"], rtol=1e-6)
    np.testing.assert_allclose(losses["float16"], losses["live"], rtol=1e-3)
    assert not np.array_equal(losses["float16"], losses["live"])
    weights = [unet(tmp_path / name / "pipeline") for name in ("live", "float32")]
    for key in weights[0]:
        assert (weights[0][key] - weights[1][key]).abs().mean() < 1e-5, key  # Adam enlarges the last digits
    assert {path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()} == {"latents", "captions"}


def test_the_cache_is_used_again_until_the_data_changes(world: Path, tmp_path: Path) -> None:
    """A caption makes other embeddings, the mirroring other latents; another run makes none."""
    captions = {f"i{number}": f"image {number}" for number in range(4)}
    same = write_folder(tmp_path / "same", captions)
    other = write_folder(tmp_path / "other", captions | {"i2": "another caption"})
    folder, files = tmp_path / "cache", []
    runs = [(same, "false"), (same, "false"), (other, "false"), (same, "true")]
    for number, (source, flip) in enumerate(runs):
        settings = {"data__sources": [str(source)], "data__flip": flip, "data__cache": folder}
        assert main(short(world, tmp_path / f"run{number}", **settings)) == 0
        files.append({path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")})
    assert [len(each) for each in files] == [2, 2, 3, 4]
    assert files[0] == files[1] and files[1].items() < files[2].items() < files[3].items()


def test_another_model_makes_another_cache(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Another autoencoder other latents, another text encoder or padding other embeddings; a move none."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)

    def keys() -> tuple[str, str]:
        return vae_key(pipe), text_key(pipe, ["sun"])

    states = [keys()]
    for part in (pipe.vae, pipe.text_encoder):
        with torch.no_grad():
            next(part.parameters()).mul_(1.01)
        states.append(keys())
    pipe.tokenizer.pad_token = "red</w>"
    states.append(keys())
    (vae, *others), texts = zip(*states, strict=True)
    assert vae not in others and len(set(others)) == 1
    assert texts[0] == texts[1] and len(set(texts)) == 3
    pipe.save_pretrained(tmp_path / "moved")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "moved")
    assert keys() == states[-1]


def test_an_interrupted_cache_is_completed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of shards of three rows the missing one is written again, as it was, and no other."""
    for module in (cache, latents):
        monkeypatch.setattr(module, "SHARD", 3)
    settings = {"data__cache": tmp_path / "cache"}
    assert main(short(world, tmp_path / "one", **settings)) == 0
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert [path.name for path in files] == [f"{number:05d}.safetensors" for number in range(3)] * 2
    gone, before = load_file(files[1]), [path.stat().st_mtime_ns for path in files]
    files[1].unlink()
    assert main(short(world, tmp_path / "two", **settings)) == 0
    assert [number for number, path in enumerate(files) if path.stat().st_mtime_ns != before[number]] == [1]
    again = load_file(files[1])
    assert all(torch.equal(again[key], gone[key]) for key in gone)
    assert unet(tmp_path / "one/pipeline").keys() == unet(tmp_path / "two/pipeline").keys()
    losses = [pd.read_csv(tmp_path / name / "metrics.csv")["loss"].tolist() for name in ("one", "two")]
    assert losses[0] == losses[1]


def test_rows_come_from_their_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD", 4)
    every = torch.randn(10, 2, 3, dtype=torch.float16)
    for number in range(3):
        rows = every[number * 4 : number * 4 + 4]
        save_file({"x": rows.contiguous()}, tmp_path / f"{number:05d}.safetensors")
    shards = Shards(tmp_path, 10)
    for wanted in ([9, 0, 4, 0, 7, 3], [5], [4, 4, 6]):
        assert torch.equal(shards.rows("x", wanted), every[wanted])  # in the precision of the cache


def test_a_broken_or_missing_shard_is_named(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2, 3)}, tmp_path / "00000.safetensors")
    with pytest.raises(ValueError, match=r"00000.safetensors is broken .not 3 rows.: delete it"):
        Shards(tmp_path, 3)
    (tmp_path / "00000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"00000.safetensors is broken .* delete it"):
        Shards(tmp_path, 3)
    with pytest.raises(FileNotFoundError, match="all machines share"):
        Shards(tmp_path / "other", 3)


def test_a_full_disk_is_noticed_before_the_work(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("train.dataset.cache.shutil.disk_usage", lambda _: type("", (), {"free": 100})())
    assert main(short(world, tmp_path / "run", data__cache=tmp_path / "cache")) == 1
    assert "the cache of images needs" in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.slow
def test_two_processes_share_the_work(world: Path, tmp_path: Path) -> None:
    """1,100 images make five shards, two or three for each; the latents are those that one process makes."""
    random = np.random.default_rng(3)
    with wds.TarWriter(str(tmp_path / "many.tar"), encoder=False) as tar:
        for number in range(1100):
            data = io.BytesIO()
            Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(data, "png")
            tar.write({"__key__": f"m{number}", "png": data.getvalue(), "txt": b"one of many"})
    for name, devices in (("two", 2), ("one", 1)):
        settings = {
            "data__sources": [str(tmp_path / "many.tar")],
            "data__cache": tmp_path / f"cache-{name}",
            "trainer__devices": devices,
            "trainer__strategy": "ddp" if devices > 1 else "auto",
        }
        run_process(short(world, tmp_path / name, **settings))
    one, two = (sorted((tmp_path / f"cache-{name}").glob("latents-*/*")) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 5
    for path, other in zip(one, two, strict=True):
        for name, values in load_file(path).items():
            torch.testing.assert_close(load_file(other)[name], values, atol=1e-3, rtol=1e-3)
    assert len(load_file(two[4])["mean"]) == 1100 - 1024
