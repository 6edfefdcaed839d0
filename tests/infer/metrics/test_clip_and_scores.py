"""CLIP scores against transformers, and a run folder's rows against its images, one by one."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.captioned import CaptionedImages, Sample, load_captioned
from infer.metrics.clip_score import ClipScore, check_clip
from infer.metrics.score import TrainingSet, score, was_scored
from infer.metrics.similarity import Descriptor, pixel_descriptor
from tests.conftest import CAPTIONS

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


# CLIP


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> ClipScore:
    return ClipScore(str(tiny_clip))


def test_clip_scores_are_the_cosines_of_transformers(tiny_clip: Path, clip: ClipScore) -> None:
    """One a pair, in order, whatever the batches."""
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(tiny_clip), CLIPTokenizer.from_pretrained(tiny_clip)
    images = [noise(seed) for seed in range(5)]
    pixels = torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    tokens = tokenizer(CAPTIONS[:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, pixel_values=pixels)
        expected = output.logits_per_image.diag() / model.logit_scale.exp()
        features = model.get_image_features(pixels).pooler_output
    assert np.allclose(clip(images, CAPTIONS[:5], batch_size=2), expected, atol=1e-5)
    assert expected.std() > 0.01
    assert torch.allclose(clip.image_features(images, batch_size=2), features, atol=1e-5)


def test_a_prompt_longer_than_clip_reads_is_scored_by_what_it_reads(clip: ClipScore) -> None:
    long = "red square blue circle green leaf old map"
    a, b = clip([noise(0), noise(0)], [f"{long} sun", f"{long} cup"])
    assert a == b


def test_a_clip_that_is_a_pickle_is_not_loaded(tiny_clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="clip has no .safetensors, only pytorch_model.bin, a pickle"):
        ClipScore(str(folder))


def test_a_missing_clip_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no CLIP model folder"):
        ClipScore(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="has no .safetensors"):
        ClipScore(str(tmp_path))


class FakeOpenClip(torch.nn.Module):
    """Mean colour of an image, and three numbers of a text."""

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float()


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The package's three functions; returns what was asked of them."""
    asked: list[Any] = []

    def create_model_and_transforms(name: str, pretrained: str, device: str) -> tuple:
        asked.append((name, pretrained, device))
        if name == "None":
            raise RuntimeError("Model config for 'None' not found")
        prepare = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # noqa: E731
        return FakeOpenClip().train(), None, prepare

    def get_tokenizer(name: str) -> Any:
        asked.append(name)
        return lambda texts: torch.tensor([[len(text), text.count("e"), 3] for text in texts])

    module = SimpleNamespace(
        create_model_and_transforms=create_model_and_transforms,
        get_tokenizer=get_tokenizer,
        __spec__=SimpleNamespace(),
    )
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return asked


def test_open_clip_models_are_scored_alike(open_clip: list[Any]) -> None:
    """By name and weights; a file of weights has its own path."""
    clip, images = ClipScore("open_clip:ViT-g-14/laion2b_s12b_b42k"), [noise(seed) for seed in range(3)]
    assert open_clip == [("ViT-g-14", "laion2b_s12b_b42k", "cpu"), "ViT-g-14"]
    assert not clip.towers.model.training
    expected = []
    for image, text in zip(images, CAPTIONS[:3], strict=True):
        a, b = np.asarray(image).mean((0, 1)) / 255, np.array([len(text), text.count("e"), 3])
        expected.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert np.allclose(clip(images, CAPTIONS[:3], batch_size=2), expected, atol=1e-5)
    assert np.allclose(clip.image_features(images), [np.asarray(i).mean((0, 1)) / 255 for i in images])
    ClipScore("open_clip:ViT-H-14//models/h14.bin")
    assert open_clip[2] == ("ViT-H-14", "/models/h14.bin", "cpu")
    with pytest.raises(FileNotFoundError, match="cannot load CLIP 'open_clip:None/x': Model config"):
        ClipScore("open_clip:None/x")


def test_open_clip_without_its_package_or_weights_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer.metrics.clip_score.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"open_clip_torch: pip install 'attraction-basin\[open_clip\]'"):
        check_clip("open_clip:ViT-H-14/laion2b_s32b_b79k")
    for name in ("open_clip:ViT-H-14", "open_clip:/laion2b", "open_clip:"):
        with pytest.raises(ValueError, match="give open_clip:MODEL/WEIGHTS"):
            check_clip(name)


# A run folder


@pytest.fixture
def training(tiny_shards: Path) -> TrainingSet:
    """Images s0 to s7 and their captions, and a second measure that is none of the first."""
    mean = Descriptor("mean colour", lambda images: torch.nn.functional.normalize(
        torch.from_numpy(np.stack([np.asarray(image).mean((0, 1)) for image in images])).float()
    ))  # fmt: skip
    measures = {"similarity": pixel_descriptor, "sscd": mean}
    return TrainingSet.embed(load_captioned(str(tiny_shards)), 16, measures)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images: two of s0, one that failed, a caption without its id, and a prompt of nothing known."""
    (tmp_path / "images").mkdir()
    rows = pd.DataFrame(
        [
            ("s0", 0, "red square"), ("s0", 1, "red square"), ("s1", 0, "blue circle"),
            ("p1", 0, " Green   LEAF"), ("p2", 0, "nothing of the kind"), ("s3", 0, "grinning cat"),
        ],
        columns=["prompt_id", "sample", "prompt"],
    ).assign(failed_step=[None, None, 3.0, None, None, None], nfe=20)  # fmt: skip
    rows["image"] = "images/" + rows["prompt_id"] + "-" + rows["sample"].astype(str) + ".png"
    for number, (path, failed) in enumerate(zip(rows["image"], rows["failed_step"].notna(), strict=True)):
        image = Image.new("RGB", (16, 16)) if failed else noise(number)
        image.save(tmp_path / path)
    rows.to_parquet(tmp_path / "samples.parquet", index=False)
    return tmp_path


def flat(image: Image.Image) -> np.ndarray:
    """Correlations of 16x16 are those of 32x32, each pixel four times."""
    return np.asarray(image, float).ravel()


def test_scores_are_those_of_the_images(folder: Path, training: TrainingSet, clip: ClipScore) -> None:
    """By numpy, one by one; a caption comes before an id; a batch is as good as another."""
    rows = score(folder, training, clip, batch_size=2)
    pd.testing.assert_frame_equal(rows, pd.read_parquet(folder / "samples.parquet"))
    pd.testing.assert_frame_equal(rows, score(folder, training, clip))
    own = {"s0": ["s0"], "p1": ["s2"], "p2": [], "s3": ["s4"]}  # s3, whose prompt is s4's caption
    references = {sample.id: sample.rgb(16) for sample in training.images.samples}
    for row in rows[rows["failed_step"].isna()].itertuples():
        image = Image.open(folder / row.image)
        alike = {key: np.corrcoef(flat(image), flat(other))[0, 1] for key, other in references.items()}
        colors = {key: np.asarray(i).mean((0, 1)) for key, i in {**references, "": image}.items()}
        unit = {key: color / np.linalg.norm(color) for key, color in colors.items()}
        cosines = {key: unit[""] @ unit[key] for key in references}
        for prefix, found in {"similarity": alike, "sscd": cosines}.items():
            best = max((found[key] for key in own[row.prompt_id]), default=np.nan)
            assert getattr(row, f"{prefix}_own") == pytest.approx(best, abs=1e-5, nan_ok=True)
            assert getattr(row, f"{prefix}_top") == pytest.approx(max(found.values()), abs=1e-5)
        assert row.top_train_id == max(alike, key=alike.get)
        assert row.sscd_top_id == max(cosines, key=cosines.get)
        assert row.clip_score == pytest.approx(clip([image], [row.prompt])[0], abs=1e-5)
    assert rows["top_train_id"].nunique() > 2 and not rows["unreadable"].any()
    assert {"nfe", "prompt", "image"} <= set(rows)


def test_of_several_own_images_the_nearest_counts(folder: Path, clip: ClipScore, tmp_path: Path) -> None:
    """All of a caption, whatever its letters and spaces, where none has the prompt's id."""
    encoded = {}
    for key in ("a", "b", "c", "d"):
        Image.open(folder / "images/p1-0.png").save(tmp_path / "x.png") if key == "c" else noise(
            ord(key)
        ).save(tmp_path / "x.png")
        encoded[key] = (tmp_path / "x.png").read_bytes()
    captions = {"a": "green leaf", "b": "sun", "c": "GREEN leaf ", "d": "Green  Leaf"}
    samples = [Sample(key, image, captions[key]) for key, image in encoded.items()]
    training = TrainingSet.embed(CaptionedImages(samples), 16, {"similarity": pixel_descriptor})
    rows = score(folder, training, clip).set_index("prompt_id")
    assert training.own(rows.reset_index())[3] == [0, 2, 3]
    assert rows["similarity_own"]["p1"] == pytest.approx(1) and rows["top_train_id"]["p1"] == "c"
    assert rows["similarity_own"].drop("p1").isna().all()


SCORES = ["similarity_own", "similarity_top", "top_train_id", "clip_score", "sscd_own", "sscd_top"]


def test_failed_images_get_no_score(folder: Path, training: TrainingSet, clip: ClipScore) -> None:
    rows = score(folder, training, clip)
    assert rows.loc[2, SCORES].isna().all() and not rows.loc[2, "unreadable"]


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "smaller"])
def test_an_image_that_cannot_be_read_is_named_counted_and_left_out(
    folder: Path, training: TrainingSet, clip: ClipScore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """The others' scores stay what they are; mended, it is scored again."""
    whole, path = score(folder, training, clip), folder / "images/s0-1.png"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("no image")
    elif damage == "smaller":
        noise(1, 15).save(path)
    assert caplog.messages == []
    shown, features = [], []
    rows = score(folder, training, clip, 3, lambda some, of: (shown.extend(some), features.append(of)))
    assert rows["unreadable"].tolist() == [False, True, False, False, False, False]
    assert rows.loc[1, SCORES].isna().all()
    pd.testing.assert_frame_equal(rows.drop(1), whole.drop(1))
    (warning,) = caplog.messages
    assert warning.startswith(f"{path} cannot be scored: ")
    assert ("it is 15x15, most are 16x16" in warning) == (damage == "smaller")
    assert len(shown) == was_scored(rows).sum() == 4
    assert np.array_equal(np.asarray(shown[0]), np.asarray(noise(0)))
    assert torch.allclose(torch.cat(features), clip.image_features(shown), atol=1e-5)
    path.write_bytes(content)
    pd.testing.assert_frame_equal(score(folder, training, clip), whole)


def test_a_run_of_which_no_image_can_be_read_has_no_scores(
    folder: Path, training: TrainingSet, clip: ClipScore
) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()
    rows = score(folder, training, clip)
    assert rows["unreadable"].tolist() == [True, True, False, True, True, True]  # one failed
    assert rows[SCORES].isna().all().all() and not was_scored(rows).any()


def test_an_image_that_comes_twice_is_an_error(folder: Path, training: TrainingSet, clip: ClipScore) -> None:
    """And the table is left alone."""
    rows = pd.read_parquet(folder / "samples.parquet")
    pd.concat([rows, rows.iloc[[4, 1]].assign(nfe=40)]).to_parquet(folder / "samples.parquet", index=False)
    before = (folder / "samples.parquet").read_bytes()
    with pytest.raises(ValueError, match="2 images come twice, the first is 'p2', sample 0"):
        score(folder, training, clip)
    assert (folder / "samples.parquet").read_bytes() == before


def test_scores_of_a_measure_that_is_no_longer_asked_for_go(
    folder: Path, training: TrainingSet, clip: ClipScore
) -> None:
    """They may be of another model or protocol."""
    both = score(folder, training, clip)
    del training.measures["sscd"]
    pd.testing.assert_frame_equal(
        score(folder, training, clip),
        both.drop(columns=["sscd_own", "sscd_top", "sscd_top_id"]),
        check_like=True,
    )


def test_a_bar_counts_all_rows(
    folder: Path, training: TrainingSet, clip: ClipScore, capsys: pytest.CaptureFixture
) -> None:
    capsys.readouterr()
    score(folder, training, clip)
    assert f"score {folder.name}: 100%" in (shown := capsys.readouterr().err) and "6/6" in shown


def test_images_are_held_one_batch_at_a_time(
    folder: Path, training: TrainingSet, clip: ClipScore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every descriptor sees them by twos, and each is decoded once for all."""
    sizes, opened, convert = [], [], Image.Image.convert
    for prefix, (descriptor, embeddings) in training.measures.items():
        watched = lambda images, descriptor=descriptor: (sizes.append(len(images)), descriptor(images))[1]  # noqa: E731
        training.measures[prefix] = (Descriptor(descriptor.identity, watched), embeddings)

    def counted(image: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        if getattr(image, "filename", ""):
            opened.append(image.filename)
        return convert(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "convert", counted)
    score(folder, training, clip, batch_size=2)
    assert sizes == [2, 2, 2, 2, 1, 1] and len(opened) == len(set(opened)) == 5


def test_a_clip_has_one_fingerprint_in_all_processes(clip: ClipScore) -> None:
    """Preparations may hold functions, which are shown with their addresses."""

    def fingerprint(preparation) -> str:
        twin = object.__new__(ClipScore)
        twin.towers = clip.towers._replace(preparation=preparation)
        return twin.fingerprint

    functions = [eval("lambda image: image") for _ in range(2)]
    assert str(functions[0]) != str(functions[1])
    assert fingerprint([functions[0]]) == fingerprint([functions[1]]) != fingerprint(["resize 224"])
