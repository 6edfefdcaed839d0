"""What an audit computes: shares, phrases, the repeated part, the choice of a mitigation, the budget."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from data.captioned import CaptionedImages
from infer.audit.answer import by_caption, others_as_near, share_of, with_nearness
from infer.audit.difference import repeated_part
from infer.audit.options import Audit
from infer.audit.phrases import caption_without, phrases_of, shortened
from infer.audit.remedy import Remedy, best_of
from infer.audit.selection import Plan, fitting
from infer.audit.use import snippet
from infer.denoising.requests import Request
from infer.options import ModelOptions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "returned, audited, low, high",
    [(0, 20, 0, 0.1611), (10, 100, 0.0552, 0.1744), (5, 5, 0.5655, 1)],  # of tables of Wilson's interval
)
def test_the_interval_of_a_share(returned: int, audited: int, low: float, high: float) -> None:
    share = share_of(returned, audited)
    assert share.share == returned / audited
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-4)
    assert math.isnan(share_of(0, 0).share)


def test_a_caption_returns_its_own_image() -> None:
    """Its own one counts, however near another is; without an own one the nearest; undefined ones do not."""
    rows = pd.DataFrame({
        "prompt_id": ["a", "a", "b", "b", "c", "d"], "sample": [0, 1, 0, 1, 0, 0], "prompt": list("aabbcd"),
        "image": list("123456"), "similarity_own": [0.2, 0.9, 0.3, 0.1, None, None],
        "similarity_top": [0.3, 0.9, 0.99, 0.1, 0.95, None], "top_train_id": ["y", "a", "x", "x", "z", None],
        "returns": [False, True, False, False, True, False],
    })  # fmt: skip
    near = with_nearness(rows, "similarity")
    lines = by_caption(near, ["prompt_id"])
    assert lines["prompt_id"].tolist() == ["c", "a", "b"] and lines["returning"].tolist() == [1, 1, 0]
    assert lines["samples"].tolist() == [1, 2, 2] and lines["image"].tolist() == ["5", "2", "3"]
    assert lines["nearest_id"].tolist() == ["z", "a", "x"]
    assert len(by_caption(near, ["prompt_id", "sample"])) == 5
    by_sscd = rows.rename(columns={"top_train_id": "sscd_top_id"} | {
        f"similarity_{name}": f"sscd_{name}" for name in ("own", "top")
    })  # fmt: skip
    pd.testing.assert_frame_equal(by_caption(with_nearness(by_sscd, "sscd"), ["prompt_id"]), lines)


def test_images_of_other_captions_show_what_is_doubtful() -> None:
    """The first training image resembles two of three images of others; an image of its own is no witness."""
    training = torch.eye(3)
    images = torch.nn.functional.normalize(torch.tensor([
        [1.0, 0, 0], [1, 0.2, 0], [1, 0.3, 0], [0, 0, 1], [0.9, 0, 0]
    ]))  # fmt: skip
    assert others_as_near(images, [0, 1, 1, 2, 0], training, 0.85, 3) == [(2, 3), (0, 3), (0, 3)]


def test_phrases() -> None:
    caption = "a woman in a red dress, standing on a beach (sunset photo), 35mm"
    spans = phrases_of(caption)
    assert [caption[slice(*span)] for span in spans] == [
        "a woman in a red dress", "standing on a beach", "sunset photo", "35mm"
    ]  # fmt: skip
    assert caption_without(caption, spans[2]) == "a woman in a red dress, standing on a beach, 35mm"
    caption = "a man with a hat of the king"
    assert [caption[slice(*span)] for span in phrases_of(caption)] == ["a man", "with a hat", "of the king"]
    assert len(phrases_of("one two three four five six seven eight")) == 6 and phrases_of("") == []


def test_a_caption_keeps_its_noise_without_a_phrase() -> None:
    requests = [Request("s0", sample, "grinning cat", 7 + sample) for sample in range(2)]
    assert [[r.prompt for r in group] for group in shortened(requests).values()] == [
        ["cat"] * 2,
        ["grinning"] * 2,
    ]
    assert all(r.seed == 7 + r.sample for group in shortened(requests).values() for r in group)
    assert shortened([Request("s1", 0, "cat", 1)]) == {}


def test_the_part_that_is_repeated() -> None:
    """The left half of the noise is the same; of one colour there is nothing to repeat."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    half = noise.copy()
    half[:, 24:] = 255 - half[:, 24:]
    drawn, part = repeated_part(Image.fromarray(half), Image.fromarray(noise))
    assert part == pytest.approx(0.5, abs=0.06)
    red = np.asarray(drawn, int)[..., 0] > np.asarray(drawn, int)[..., 2]
    assert red[:, :20].all() and not red[:, 28:].any()
    _, part = repeated_part(Image.fromarray(noise), Image.new("RGB", (48, 48), "white"))
    assert math.isnan(part)


def remedy(name: str, returned: int, clip: float) -> Remedy:
    left = share_of(returned, 10)
    return Remedy(name, name, left, 0.5 * left.share, clip, 0.3, 100, {})


def test_the_mitigation_that_keeps_the_prompt_among_those_that_are_enough() -> None:
    a, b, c = remedy("a", 0, 0.1), remedy("b", 1, 0.25), remedy("c", 5, 0.29)
    assert best_of([a, b, c], goal=0.05) is b
    assert best_of([a, b, c], goal=0.01) is a
    assert best_of([b, c], goal=0.01) is b  # none is enough: fewest copies
    assert best_of([remedy("x", 0, math.nan), b], goal=0.05) is b
    assert not c.loses_the_prompt and a.loses_the_prompt
    assert best_of([remedy("d", 10, 0.3)], goal=0.05) is None and best_of([], goal=0.05) is None
    assert best_of([remedy("d", 10, 0.3), b], goal=0.5) is b  # what changes nothing is no help


def test_the_captions_of_a_run_are_those_that_it_duplicated(tmp_path: Path) -> None:
    rows = {"id": ["a", "b"], "caption": ["zxq a cat", "a dog"], "times_shown": [9, 1]}
    images = CaptionedImages([])
    for duplicated, expected in (([True, False], ["zxq a cat"]), ([False, False], rows["caption"])):
        pd.DataFrame(rows | {"duplicated": duplicated}).to_parquet(tmp_path / "exposures.parquet")
        options = SimpleNamespace(run=str(tmp_path), prompt=None)
        assert [prompt.text for prompt in Audit.prompts(options, images)] == expected


def test_the_budget() -> None:
    """600 images: 300 for captions of 4, 3 x 6 x 4 = 72 for phrases; of 228 each of 4 mitigations has 57."""
    options = SimpleNamespace(minutes=10, samples_per_prompt=4, phrases=3, tried=20, mitigations=[1, 2, 3, 4])
    assert fitting(options, seconds_per_image=1) == Plan(captions=75, phrases=3, tried=14)
    assert fitting(options, seconds_per_image=600) == Plan(captions=1, phrases=0, tried=1)


def test_the_lines_for_a_pipeline() -> None:
    """Only what differs from the defaults; a LoRA is loaded first."""
    text = snippet(ModelOptions(pipeline="my/model"), [StaticTransition(timestep=650, guidance_before=-2.0)])
    assert text.splitlines()[2:] == [
        "from callbacks.mitigations.static_transition import StaticTransition",
        'pipe = mitigate(StableDiffusionPipeline.from_pretrained("my/model"), '
        "StaticTransition(timestep=650, guidance_before=-2.0))",
        'image = pipe("PROMPT", num_inference_steps=50, guidance_scale=7.5).images[0]',
    ]
    model = ModelOptions(pipeline="my/model", lora="a.safetensors", lora_scale=0.8)
    text = snippet(model, [DynamicTransition()])
    assert 'pipe.load_lora_weights("a.safetensors")\npipe.fuse_lora(lora_scale=0.8)\n' in text
    assert text.splitlines()[-2] == "pipe = mitigate(pipe, DynamicTransition())"
