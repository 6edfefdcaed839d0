"""Prompts that `python -m infer predict` is given: on the command line, negative, alternative, too long."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.prompts import text_id
from infer.denoising.noise import sample_seed
from infer.models.pipeline import load_pipeline
from tests.conftest import CAPTIONS
from tests.infer.predict.runs import (
    assert_stock,
    command,
    pixels,
    refused,
    rows_of,
    stock,
    summary_of,
    write_prompts,
)

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = "red square blue circle green leaf old map"  # the tokenizer takes 8 tokens, two of them its own


# Prompts on the command line

TEXTS = [  # every second one as --prompt=TEXT
    "red square", 'a "red" square, it\'s', "red, square", "[red, square]", "{red}: square", "café 日本 🚗",
    "null", "-5 red", "123", "--out", "1e3", "--prompt", "~", "# red", "red \\n square \\", "a = b", "stp",
]  # fmt: skip


def test_prompts_on_the_command_line(predict: Callable[..., Path], tiny_pipeline: Path) -> None:
    """Each is taken as it is, to the letter, in either form, in order; the images are those of the texts."""
    forms = ([f"--prompt={text}"] if n % 2 else ["--prompt", text] for n, text in enumerate(TEXTS))
    options = [word for form in forms for word in form]
    out = predict(*options, "--samples_per_prompt", "2", steps=2)
    rows = rows_of(out)
    assert list(rows["prompt"]) == [text for text in TEXTS for _ in range(2)]
    assert list(rows["prompt_id"][::2]) == [text_id(text) for text in TEXTS]
    assert rows["seed"][3] == sample_seed(0, text_id(TEXTS[1]), 1)
    assert_stock(out, load_pipeline(str(tiny_pipeline)), 2)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "give prompts: --prompts FILE, --prompt TEXT"),
        (["--prompt", ""], "an empty prompt"),
        (["--prompt="], "an empty prompt"),
        (["--prompt", " "], "an empty prompt"),
        (["--prompt", "red square", "--prompt"], "an empty prompt"),
    ],
)
def test_what_is_wrong_with_prompts_is_one_clear_error(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    error = refused(command(tiny_pipeline, tmp_path / "run", 4, *options), capsys)
    assert message in error
    assert not (tmp_path / "run").exists()


# Negative and alternative prompts


def test_each_row_has_its_own_negative_prompt(
    predict: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path
) -> None:
    """An empty one is the empty prompt; the run's stands in where there is none."""
    rows = [{"negative_prompt": "old map"}, {"negative_prompt": ""}, {}, {"negative_prompt": None}]
    rows = [{"text": CAPTIONS[number], **row} for number, row in enumerate(rows)]
    prompts = write_prompts(tmp_path / "prompts.jsonl", *rows)
    out = predict("--prompts", prompts, "--model.negative_prompt", "sun")
    rows, images, pipe = rows_of(out), pixels(out), load_pipeline(str(tiny_pipeline))
    assert [text if isinstance(text, str) else None for text in rows["negative_prompt"]] == [
        "old map", "", None, None,
    ]  # fmt: skip
    for row, negative in zip(rows.itertuples(), ["old map", "", "sun", "sun"], strict=True):
        image = images[f"{row.prompt_id}-0.png"]
        assert np.abs(image - stock(pipe, row, negative_prompt=negative)).max() <= 1
        other = stock(pipe, row, negative_prompt="tea cup")
        assert np.abs(image - other).max() > 3


def test_alternative_prompts_reach_the_rule(predict: Callable[..., Path], tmp_path: Path) -> None:
    """And the table."""
    rows = [{"text": "red square", "alternative_prompt": "blue circle"}, {"text": "old map"}]
    prompts = write_prompts(tmp_path / "prompts.jsonl", *rows)
    transition = ("--mitigation.transition", "StaticTransition")
    detour = predict("--prompts", prompts, "--mitigation", "Detour", *transition)
    alternatives = rows_of(detour)["alternative_prompt"]
    assert alternatives[0] == "blue circle" and pd.isna(alternatives[1])
    assert summary_of(detour)["without_alternative"] == 1
    waiting = predict("--prompts", prompts, "--mitigation", "stp", "--out", str(tmp_path / "stp"))
    images, others = pixels(detour), pixels(waiting)
    assert np.abs(images["s0-0.png"] - others["s0-0.png"]).max() > 3
    assert np.abs(images["s1-0.png"] - others["s1-0.png"]).max() <= 1


# Prompts that are too long


def test_prompts_that_are_too_long_are_counted_once(
    predict: Callable[..., Path], tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    """One warning for the whole run, whatever its batches; a long prompt is its beginning."""
    rows = [{"text": "red square"}, {"text": LONG}, {"text": LONG + " sun"}]
    prompts = write_prompts(tmp_path / "prompts.jsonl", *rows)
    out = predict("--prompts", prompts, "--batch_size", "1", "--samples_per_prompt", "2")
    assert len(warned()) == 1
    assert warned()[0].startswith("2 of 3 prompts are longer than the 8 tokens") and LONG in warned()[0]
    assert list(rows_of(out)["prompt"]) == [row["text"] for row in rows for _ in range(2)]
    rows = [{"text": "red square"}, {"text": LONG + " tea"}, {"text": LONG + " sun"}]
    other = predict(
        "--prompts", write_prompts(tmp_path / "other.jsonl", *rows), "--samples_per_prompt", "2",
        "--out", str(tmp_path / "other"),
    )  # fmt: skip
    assert np.abs(pixels(out)["s1-1.png"] - pixels(other)["s1-1.png"]).max() <= 1


def test_the_first_prompt_that_is_too_long_is_shortened(
    predict: Callable[..., Path], warned: Callable[[], list[str]]
) -> None:
    predict("--prompt", LONG + " sun" * 5000)
    assert len(warned()) == 1 and len(warned()[0]) < 250


# File names


def test_no_two_ids_meet_on_a_disk_that_ignores_case(predict: Callable[..., Path], tmp_path: Path) -> None:
    """Case, composed and decomposed letters, and an id that is longer than a file name may be."""
    ids = ["a", "A", "caf\u00e9", "cafe\u0301", "x" * 300, "plain"]
    rows = [{"id": key, "text": "red square"} for key in ids]
    out = predict("--prompts", write_prompts(tmp_path / "prompts.jsonl", *rows), steps=1)
    names = [Path(path).name for path in rows_of(out)["image"]]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(ids)
    assert names[-1] == "plain-0.png" and max(len(name.encode()) for name in names) < 200
    assert list(rows_of(out)["prompt_id"]) == ids and set(pixels(out)) == set(names)
