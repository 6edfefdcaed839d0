"""Ordinary prompts in their published forms: PartiPrompts' .tsv, COCO's captions as JSON and as parquet."""

import json
from pathlib import Path

import pandas as pd
import pytest

from data.prompts import Prompt, load_prompts, text_id
from tests.data.prompts.files import write

# PartiPrompts: quotation marks within a prompt are text, and a note may be empty
PARTI = """Prompt\tCategory\tChallenge\tNote
bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings
a sign that says "Deep Learning"\tWorld Knowledge\tWriting & Symbols\t
"Space" written in stars; "x\tAbstract\tStyle & Format\tstyle-format-text
"""
COCO = {
    "info": {"year": 2017},
    "images": [{"id": 179765, "file_name": "000000179765.jpg"}, {"id": 190236, "file_name": "x.jpg"}],
    "annotations": [
        {"image_id": 179765, "id": 38, "caption": "A black Honda motorcycle parked in front of a garage."},
        {"image_id": 190236, "id": 41, "caption": "An office cubicle with four computers.\n"},
        {"image_id": 179765, "id": 182, "caption": "A Honda motorcycle parked in a grass driveway"},
    ],
}
CAT, DOG = Prompt(text_id("a cat"), "a cat"), Prompt(text_id("a dog"), "a dog")


def test_parti_prompts(tmp_path: Path) -> None:
    texts = ["bond", 'a sign that says "Deep Learning"', '"Space" written in stars; "x']
    loaded = load_prompts(write(tmp_path / "PartiPrompts.tsv", PARTI))
    assert loaded == [Prompt(text_id(text), text) for text in texts]


def test_coco_gives_the_first_caption_of_each_image(tmp_path: Path) -> None:
    assert load_prompts(write(tmp_path / "captions_val2017.json", json.dumps(COCO))) == [
        Prompt("179765", "A black Honda motorcycle parked in front of a garage."),
        Prompt("190236", "An office cubicle with four computers."),
    ]


@pytest.mark.parametrize("columns, expected", [
    ({"caption": ["a cat", "a dog"], "image_id": [1, 2]}, [CAT, DOG]),
    ({"ID": [7.0, None], "Prompt": ["a cat", "a dog"]}, [Prompt("7", "a cat"), DOG]),
    ({"id": ["x"], "captions": [["a cat", "one"]], "negative": ["blur"]}, [Prompt("x", "a cat", "blur")]),
])  # fmt: skip
def test_parquet(tmp_path: Path, columns: dict, expected: list[Prompt]) -> None:
    pd.DataFrame(columns).to_parquet(tmp_path / "coco.parquet")
    assert load_prompts(str(tmp_path / "coco.parquet")) == expected


@pytest.mark.parametrize("content", ["[]", "{", '{"annotations": [{"image_id": 1}]}', '["a cat"]'])
def test_another_json_is_refused_and_what_to_do_is_said(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match=r"no captions of COCO: .*\.jsonl|holds no prompt"):
        load_prompts(write(tmp_path / "x.json", content))


def test_a_parquet_without_prompts_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"url": ["http://a.b"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no column caption, prompt, text among"):
        load_prompts(str(tmp_path / "x.parquet"))
