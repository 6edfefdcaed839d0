"""The scores of a run folder's rows against its images, one by one, and what happens without an image."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data.captioned import CaptionedImages, Sample, load_captioned
from infer.compare.score_images import score_folder, was_scored
from infer.metrics.clip_score import ClipScore
from infer.metrics.distances import extractor
from infer.metrics.similarity import Descriptor, pixel_descriptor
from infer.metrics.training_set import TrainingSet
from tests.pixels import local_correlation

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(seed: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    image.save(content := io.BytesIO(), "png")
    return content.getvalue()


@pytest.fixture
def training(tiny_shards: Path) -> TrainingSet:
    """Images s0 to s7 and their captions, and a second measure that is none of the first."""
    mean = Descriptor("mean colour", lambda images: torch.nn.functional.normalize(
        torch.from_numpy(np.stack([np.asarray(image).mean((0, 1)) for image in images])).float()
    ))  # fmt: skip
    measures = {"similarity": pixel_descriptor, "sscd": mean}
    return TrainingSet(load_captioned(str(tiny_shards)), 16, measures)


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


def test_scores_are_those_of_the_images(
    folder: Path, training: TrainingSet, clip: ClipScore, capsys: pytest.CaptureFixture
) -> None:
    """By numpy, one by one; a caption comes before an id; a batch is as good as another; a bar counts all."""
    rows, _ = score_folder(folder, training, clip, batch_size=2)
    assert f"score {folder.name}: 100%" in (shown := capsys.readouterr().err) and "5/5" in shown
    pd.testing.assert_frame_equal(rows, pd.read_parquet(folder / "samples.parquet"))
    pd.testing.assert_frame_equal(rows, score_folder(folder, training, clip)[0])
    own = {"s0": ["s0"], "p1": ["s2"], "p2": [], "s3": ["s4"]}  # s3, whose prompt is s4's caption
    references = {sample.id: sample.rgb(16) for sample in training.images.samples}
    for row in rows[rows["failed_step"].isna()].itertuples():
        image = Image.open(folder / row.image)
        alike = {key: local_correlation(image, other) for key, other in references.items()}
        colors = {key: np.asarray(i).mean((0, 1)) for key, i in {**references, "": image}.items()}
        unit = {key: color / np.linalg.norm(color) for key, color in colors.items()}
        cosines = {key: unit[""] @ unit[key] for key in references}
        for prefix, similarities in {"similarity": alike, "sscd": cosines}.items():
            best = max((similarities[key] for key in own[row.prompt_id]), default=np.nan)
            assert getattr(row, f"{prefix}_own") == pytest.approx(best, abs=1e-5, nan_ok=True)
            assert getattr(row, f"{prefix}_top") == pytest.approx(max(similarities.values()), abs=1e-5)
        assert row.top_train_id == max(alike, key=alike.get)
        assert row.sscd_top_id == max(cosines, key=cosines.get)
        assert row.clip_score == pytest.approx(
            clip.cosines(clip.image_features([image]), [row.prompt])[0], abs=1e-5
        )
    assert rows["top_train_id"].nunique() > 2 and not rows["unreadable"].any()
    assert rows.loc[2, SCORES].isna().all()  # it failed
    assert {"nfe", "prompt", "image"} <= set(rows)


def test_of_several_own_images_the_nearest_counts(folder: Path, clip: ClipScore) -> None:
    """All of a caption, whatever its letters and spaces, where none has the prompt's id."""
    captions = {"a": "green leaf", "b": "sun", "c": "GREEN leaf ", "d": "Green  Leaf"}
    samples = [Sample(key, png(noise(ord(key))), caption) for key, caption in captions.items()]
    samples[2] = replace(samples[2], stored=(folder / "images/p1-0.png").read_bytes())
    training = TrainingSet(CaptionedImages(samples), 16, {"similarity": pixel_descriptor})
    rows = score_folder(folder, training, clip)[0].set_index("prompt_id")
    assert training.own(rows.reset_index())[3] == [0, 2, 3]
    assert rows["similarity_own"]["p1"] == pytest.approx(1) and rows["top_train_id"]["p1"] == "c"
    assert rows["similarity_own"].drop("p1").isna().all()


SCORES = ["similarity_own", "similarity_top", "top_train_id", "clip_score", "sscd_own", "sscd_top"]


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_an_image_that_cannot_be_read_is_named_counted_and_left_out(
    folder: Path, training: TrainingSet, clip: ClipScore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """The others' scores stay what they are; mended, it is scored again."""
    whole, path = score_folder(folder, training, clip)[0], folder / "images/s0-1.png"
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2])
    assert caplog.messages == []
    rows, features = score_folder(folder, training, clip, extractor("clip", clip), batch_size=3)
    assert rows["unreadable"].tolist() == [False, True, False, False, False, False]
    assert rows.loc[1, SCORES].isna().all()
    pd.testing.assert_frame_equal(rows.drop(1), whole.drop(1))
    (warning,) = caplog.messages
    assert warning.startswith(f"{path} cannot be scored: ")
    images = [Image.open(folder / image) for image in rows["image"][was_scored(rows)]]
    assert len(images) == 4 and torch.allclose(features.float(), clip.image_features(images), atol=1e-5)
    path.write_bytes(content)
    pd.testing.assert_frame_equal(score_folder(folder, training, clip)[0], whole)


def test_images_of_one_colour_have_no_similarity_but_a_clip_score(
    folder: Path, training: TrainingSet, clip: ClipScore
) -> None:
    """Black, one colour, and one that is nearly so; the others' scores stay."""
    whole, _ = score_folder(folder, training, clip)
    nearly = np.full((16, 16, 3), (10, 200, 30)) + np.random.default_rng(0).integers(0, 2, (16, 16, 3))
    Image.new("RGB", (16, 16)).save(folder / "images/s0-0.png")
    Image.new("RGB", (16, 16), "red").save(folder / "images/s0-1.png")
    Image.fromarray(nearly.astype(np.uint8)).save(folder / "images/s3-0.png")
    rows, _ = score_folder(folder, training, clip)
    assert rows["undefined"].tolist() == [True, True, False, False, False, True]
    similarities = ["similarity_own", "similarity_top", "top_train_id"]
    assert rows.loc[rows["undefined"], similarities].isna().all().all()
    assert rows.loc[rows["undefined"], "clip_score"].notna().all() and was_scored(rows).sum() == 5
    pd.testing.assert_frame_equal(rows[3:5], whole[3:5])


def test_a_training_image_of_one_colour_is_nearest_to_nothing(folder: Path, clip: ClipScore) -> None:
    """Its own prompt has no similarity to it."""
    black = png(Image.new("RGB", (16, 16)))
    samples = [Sample("s0", black, "red square"), Sample("x", png(noise(7)), "other")]
    training = TrainingSet(CaptionedImages(samples), 16, {"similarity": pixel_descriptor})
    rows, _ = score_folder(folder, training, clip)
    assert training.left_out() == ["s0"] and rows["similarity_own"].isna().all()
    assert set(rows["top_train_id"].dropna()) == {"x"} and not rows["undefined"].any()


def test_scores_of_a_measure_that_is_off_are_removed(
    folder: Path, training: TrainingSet, clip: ClipScore
) -> None:
    """They may be of another model or protocol."""
    both, _ = score_folder(folder, training, clip)
    del training.measures["sscd"]
    pd.testing.assert_frame_equal(
        score_folder(folder, training, clip)[0],
        both.drop(columns=["sscd_own", "sscd_top", "sscd_top_id"]),
        check_like=True,
    )


def test_images_are_held_one_batch_at_a_time(folder: Path, training: TrainingSet, clip: ClipScore) -> None:
    """Every descriptor sees them by twos."""
    sizes = []
    for prefix, (descriptor, embeddings) in training.measures.items():
        watched = lambda images, descriptor=descriptor: (sizes.append(len(images)), descriptor(images))[1]  # noqa: E731
        training.measures[prefix] = (Descriptor(descriptor.identity, watched), embeddings)
    score_folder(folder, training, clip, batch_size=2)
    assert sizes == [2, 2, 2, 2, 1, 1]
