"""`python -m infer audit` on a model that returns two of six training images, as these are its own images."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.prompts import Prompt
from infer.__main__ import main
from infer.audit.phrases import phrases_of
from infer.denoising.requests import requests_for
from infer.metrics.similarity import pixel_descriptor, similarity
from infer.options import ModelOptions
from infer.predict.module import Generate
from tests.conftest import CAPTIONS
from tests.infer.training_runs import save_model

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4
ODD = "sun <script>alert(1)</script>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "pipeline")


@pytest.fixture(scope="module")
def own(model: Path) -> dict[str, Image.Image]:
    """The first images that the model makes of two captions and of the empty prompt, by id."""
    module = Generate(ModelOptions(pipeline=str(model), num_inference_steps=STEPS))
    module.load()
    prompts = [Prompt("s0", CAPTIONS[0]), Prompt("s1", ODD), Prompt("empty", "")]
    requests = requests_for(prompts, 1, 0)
    return {r.prompt_id: image for r, image in zip(requests, module.generate(requests).images, strict=True)}


@pytest.fixture(scope="module")
def training(own: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with captions beside them: two of the model's own, and four of noise."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number, caption in enumerate([CAPTIONS[0], ODD, *CAPTIONS[2:6]]):
        noise = Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8))
        own.get(f"s{number}", noise).save(folder / f"s{number}.png")
        (folder / f"s{number}.txt").write_text(caption)
    return folder


def arguments(model: Path, training: Path, out: Path, clip: Path, *more: str) -> list[str]:
    return [
        "audit", "--model.pipeline", str(model), "--model.num_inference_steps", str(STEPS), "--training",
        str(training), "--out", str(out), "--clip", str(clip), "--cache", str(out / "cache"), "--device",
        "cpu", "--threshold", "0.995", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def command(
    model: Path, training: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    out = tmp_path_factory.mktemp("audits") / "audit"
    more = ["--samples_per_prompt", "2", "--phrases", "1", "--mitigations", "interval,og_stp"]
    return arguments(model, training, out, tiny_clip, *more)


@pytest.fixture(scope="module")
def audited(command: list[str]) -> Path:
    """A finished audit; its exit code says that too many captions return their image."""
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    return Path(command[command.index("--out") + 1])


def result_of(folder: Path) -> dict:
    return json.loads((folder / "audit.json").read_text())


def test_it_finds_the_images_that_the_model_returns(audited: Path) -> None:
    result = result_of(audited)
    assert (result["returned"], result["audited"], result["of"]) == (2, 6, 6)
    assert result["share"] == pytest.approx(1 / 3) and result["low"] < 1 / 3 < result["high"]
    assert not result["passed"] and result["unit"] == "caption" and result["measure"] == "pixels"
    assert "2 of 6 captions return their training image (33%" in result["headline"]
    first = result["images"][:2]
    assert {line["training_id"] for line in first} == {"s0", "s1"} and len(result["images"]) == 6
    for line in first:
        assert line["returning"] == 1 and line["samples"] == 2 and line["sample"] == 0
        assert line["similarity"] == pytest.approx(1, abs=1e-3) and line["repeated_part"] == 1
        for name in ("image", "training_image", "map", "mitigated_image"):
            assert Image.open(audited / line[name]).size == (16, 16)
    assert any("no copy detector" in note for note in result["notes"])


def test_each_phrase_of_the_worst_caption_is_tried(audited: Path) -> None:
    """Its similarities are those of the images without the phrase to the training image of the caption."""
    result = result_of(audited)
    worst = result["images"][0]
    reference = Image.open(audited / worst["training_image"])
    spans = [worst["prompt"][slice(*span)] for span in phrases_of(worst["prompt"])]
    assert sorted(line["phrase"] for line in result["phrases"]) == sorted(spans) and len(spans) >= 2
    for line in result["phrases"]:
        assert line["prompt_id"] == worst["prompt_id"] and line["samples"] == 2 and line["returning"] == 1
        number = spans.index(line["phrase"]) + 1
        paths = audited.glob(f"runs/phrases-*/images/{worst['prompt_id']}~{number}-*.png")
        images = [Image.open(path) for path in paths]
        near = similarity(pixel_descriptor, images, [reference] * 2)
        assert line["similarity_without"] == pytest.approx(near.mean().item(), abs=1e-4)
        assert line["returning_without"] == (near > 0.995).sum().item()


def test_mitigations_are_tried_on_what_is_returned(audited: Path) -> None:
    """The chosen one's lines make an image in a pipeline of diffusers."""
    result = result_of(audited)
    assert [line["mitigation"] for line in result["mitigations"]] == ["interval", "og_stp"]
    for line in result["mitigations"]:
        assert line["tried"] == 2 and line["share"] == pytest.approx(line["returned"] / 6)
    helped = [line for line in result["mitigations"] if line["share"] <= result["goal"]]
    best = max(helped, key=lambda line: line["clip_score"])
    chosen = result["chosen"]
    assert chosen["mitigation"] == best["mitigation"] and chosen["reaches_goal"]
    assert f"--mitigation {best['preset']}" in chosen["command"]
    names: dict = {}
    exec(chosen["python"].replace("PROMPT", "red square"), names)
    assert names["image"].size == (16, 16) and len(names["pipe"].rules) == 1


def test_the_page_is_safe_and_complete(audited: Path) -> None:
    page = (audited / "audit.html").read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert page.count('src="data:image/webp;base64,') == 6
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert result_of(audited)["headline"] in page.replace("&#39;", "'")


def test_it_goes_on_where_it_stopped(
    audited: Path, command: list[str], capsys: pytest.CaptureFixture
) -> None:
    """Only the image that is missing is made again; with more allowed the exit code is 0."""
    images = sorted(audited.glob("runs/**/*.png"))
    images[0].unlink()
    times = {path: path.stat().st_mtime_ns for path in images[1:]}
    assert main([*command, "--fail_above", "0.5"]) == 0
    assert images[0].exists() and {path: path.stat().st_mtime_ns for path in images[1:]} == times
    assert result_of(audited)["passed"] and "The audit passes" in capsys.readouterr().out


def test_without_captions_it_is_the_empty_prompt(
    model: Path, own: dict[str, Image.Image], training: Path, tiny_clip: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Images count one by one, each beside the nearest training image; it is said what has no effect."""
    images = tmp_path / "images"
    shutil.copytree(training, images, ignore=shutil.ignore_patterns("*.txt"))
    own["empty"].save(images / "e.png")
    out = tmp_path / "out"
    more = ["--limit", "3", "--mitigations", "[]", "--fail_above", "0.4"]
    idle = ["--samples_per_prompt", "2", "--goal", "0.1"]
    assert main(arguments(model, images, out, tiny_clip, *more, *idle)) == 0
    for option in ("--samples_per_prompt", "--goal or --tried"):
        assert caplog.text.count(f"{option} has no effect") == 1
    result = result_of(out)
    assert (result["returned"], result["audited"], result["unit"]) == (1, 3, "image")
    assert result["images"][0]["training_id"] == "e" and result["images"][0]["prompt"] == ""
    assert result["mitigations"] == [] and result["chosen"] is None and result["phrases"] == []
