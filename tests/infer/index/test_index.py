"""The index: one file of descriptors, what is in it and what is not, and which model it needs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data.captioned import load_captioned
from infer.__main__ import main
from infer.index.descriptor_index import DescriptorIndex
from infer.index.options import IndexOptions
from infer.metrics.similarity import CORRELATION, Descriptor, pixel_descriptor
from infer.metrics.sscd import SSCD_MODELS
from infer.metrics.training_set import TrainingSet
from tests.infer.predict.runs import refused

pytestmark = pytest.mark.usefixtures("one_thread")
SHA = "0" * 64


def written(training: Path, out: Path, *options: str) -> DescriptorIndex:
    arguments = ["index", "--training", str(training), "--out", str(out), "--cache", "null", *options]
    assert main([*arguments, "--device", "cpu"]) == 0
    return DescriptorIndex.load(out)


def test_the_file_holds_descriptors_and_what_made_them(tiny_shards: Path, tmp_path: Path, capsys) -> None:
    """Those that images are scored by; and it is said what can be seen in them."""
    path = tmp_path / "index.safetensors"
    index = written(tiny_shards, path, "--resolution", "16")
    images = [sample.rgb(16) for sample in load_captioned(str(tiny_shards)).samples]
    assert torch.equal(index.embeddings, pixel_descriptor(images))
    assert index.ids == [f"s{number}" for number in range(8)] and index.resolution == 16
    assert index.descriptor == CORRELATION and index.sscd is None
    matches = index.nearest(pixel_descriptor([images[5]]))
    assert matches.top_index.tolist() == [5] and matches.top.item() == pytest.approx(1)
    printed = capsys.readouterr().out
    assert "8 images" in printed and "Anyone can see the images in these descriptors" in printed
    with safe_open(str(path), "pt") as file:
        assert list(file.keys()) == ["embeddings"]
        about = file.metadata()
    assert json.loads(about["ids"])[0] == "s0" and str(tiny_shards) not in str(about)


def test_a_training_run_gives_images_and_resolution(tiny_pipeline: Path, tmp_path: Path) -> None:
    """The UNet's 8 latents a side are 16 pixels; without its configs 512."""
    about = {"sources": ["a.tar"], "ordinary": ["b.tar"]}
    (tmp_path / "provenance.json").write_text(json.dumps(about))
    given = {"out": "x.safetensors", "run": str(tmp_path), "device": "cpu"}
    assert IndexOptions(**given).resolution == 512
    (tmp_path / "pipeline").symlink_to(tiny_pipeline)
    options = IndexOptions(**given)
    assert options.resolution == 16 and options.training == ["a.tar", "b.tar"]
    assert IndexOptions(**given, training=["c.tar"], resolution=32).resolution == 32


def test_names_may_be_left_out(tiny_shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.safetensors"
    assert written(tiny_shards, path, "--resolution", "16", "--ids", "false").ids is None
    with safe_open(str(path), "pt") as file:
        assert "s0" not in str(file.metadata())


def test_images_without_descriptor_are_left_out(tiny_shards: Path) -> None:
    def embed(images: list) -> torch.Tensor:
        return pixel_descriptor(images).index_fill(0, torch.tensor([2]), torch.nan)

    training = TrainingSet(load_captioned(str(tiny_shards)), 16, {"x": Descriptor("x", embed)})
    index = DescriptorIndex.of(training)
    assert index.ids == ["s0", "s1", "s3", "s4", "s5", "s6", "s7"] and len(index.embeddings) == 7


def test_an_index_of_sscd_says_which_model_it_needs(tmp_path: Path) -> None:
    """Only Meta's models by themselves: an address from a file of somebody else is not followed."""
    index = DescriptorIndex(torch.zeros(1, 4), f"SSCD {SHA} dcr", 32)
    with pytest.raises(ValueError, match=r"of SSCD \(sha256 000000000000...\): give its file as sscd"):
        index.check(None)
    (tmp_path / "other.pt").write_bytes(b"other")
    with pytest.raises(ValueError, match="sha256"):
        index.check(str(tmp_path / "other.pt"))
    name = next(iter(SSCD_MODELS))
    assert DescriptorIndex(index.embeddings, index.descriptor, 32, sscd=name).check(None) == name
    assert DescriptorIndex(index.embeddings, CORRELATION, 32).check(None) is None


def test_what_is_no_index(tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    how = "build one with: python -m infer index --training"
    with pytest.raises(FileNotFoundError, match=how):
        DescriptorIndex.load(tmp_path / "nothing.safetensors")
    save_file({"embeddings": torch.zeros(1, 2)}, tmp_path / "weights.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("weights", "text"):
        with pytest.raises(ValueError, match=f"{name}.safetensors' is no (whole )?index.*{how}"):
            DescriptorIndex.load(tmp_path / f"{name}.safetensors")
    given = ["index", "--out", str(tmp_path / "x.safetensors")]
    assert refused(given, capsys) == "give --training, or --run with a training run folder"
    assert "out is a .safetensors file" in refused(
        ["index", "--training", str(tiny_shards), "--out", "x"], capsys
    )
