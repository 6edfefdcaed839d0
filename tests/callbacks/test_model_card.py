"""The README.md of an exported model: what it says, and what it must not."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

from callbacks.model_card import code, describe, model_card, short
from infer.models.pipeline import load_pipeline
from tests.callbacks import run_files
from tests.callbacks.run_files import ABOUT, CONFIG, change
from tests.infer.models.model_files import diffusers_lora

run = run_files.run  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_card_says_what_the_run_folder_says(run: Path) -> None:
    text = model_card(run, "me/memorized")
    for words in (
        "# me/memorized",
        "return their training\nimages, **on purpose**",
        "- Sources: `laion/{00000..00009}.tar`, `hf:someone/pictures:train`",
        "- Images: 3, and 2 ordinary ones",
        "- Duplicated: 2 images, each shown 200 times",
        "- Not duplicated: 3 images, each shown 1 to 2 times, 1.3 on average",
        "- Steps: 900, of 64 images each",  # 4 x 8 devices x 2 accumulated
        "- Learning rate: 1e-05, 10 warm-up steps, then cosine",
        "(EMA): decay 0.95",
        "- Memorized: 75% of 4 watched images after step 900 (correlation above 0.5)",
        "Python `3.11.7`, torch `2.13.0`, code `c0ffee`",
        'StableDiffusionPipeline.from_pretrained("me/memorized")',
    ):
        assert words in text
    for words in ("alice", "/home", "/scratch", "secret", "license", "load_lora_weights"):
        assert words not in text


def test_the_front_matter_is_what_the_hub_reads(run: Path) -> None:
    data = ModelCard(model_card(run, None)).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("diffusers", "text-to-image", None)
    assert data.datasets == ["someone/pictures"] and "memorization" in data.tags
    assert data.base_model is None  # a folder of this machine
    change(run / "provenance.json", pipeline="someone/sd")
    assert ModelCard(model_card(run, None)).data.base_model == "someone/sd"


def test_names_cannot_write_the_card(run: Path) -> None:
    """Neither Markdown nor YAML: a source of any name is one code span in one line."""
    change(run / "provenance.json", sources=["x` <img src=y>\n---\nlicense: mit\n# z"], pipeline="a: b/c`\nd")
    text = model_card(run, None)
    assert "`` x` <img src=y> --- license: mit # z ``" in text
    assert ModelCard(text).data.to_dict()["base_model"] == "a: b/c`\nd"
    assert code("a``b") == "``` a``b ```"


def test_a_stream_has_no_duplicated_images(run: Path) -> None:
    pd.DataFrame({"id": ["a", "b"], "times_shown": [1, 3]}).to_parquet(run / "exposures.parquet")
    about = {
        key: value for key, value in ABOUT.items() if key not in ("ordinary", "images", "ordinary_images")
    }
    (run / "provenance.json").write_text(json.dumps(about))
    (run / "samples/similarity.parquet").unlink()
    text = model_card(run, None)
    assert "- Images: 2, streamed, each shown 1 to 3 times, 2.0 on average" in text
    assert "Duplicated" not in text and "- Memorized: not measured" in text


@pytest.mark.parametrize(
    "path, name",
    {
        "/home/alice": "a local folder",
        "/home/alice/art": "art",
        "/home/alice/images.tar": "images.tar",
        r"C:\Users\bob\art\a.parquet": "art/a.parquet",
        "~bob/data": "data",
        "/data/me/art": "art",
        "/data/me/*.tar": "data/*.tar",
    }.items(),
)
def test_places_name_no_user(path: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/elsewhere/me")
    assert short(path) == name


def test_configs_name_no_folder_of_this_machine(run: Path) -> None:
    describe(run, run / "pipeline")
    assert json.loads((run / "pipeline/model_index.json").read_text()) == {"_name_or_path": "sd"}
    assert json.loads((run / "pipeline/unet/config.json").read_text()) == {"_name_or_path": "someone/model"}
    assert (run / "pipeline/README.md").read_text() == model_card(run, None)


def test_the_snippets_run(
    run: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the exported folder: the model, and the LoRA on its base."""
    monkeypatch.chdir(tmp_path)
    pipe = load_pipeline(str(model_folder))
    exported = tmp_path / "path/to/this/folder"
    pipe.save_pretrained(exported)
    diffusers_lora(pipe, exported / "lora", 2, metadata=False)
    (exported / "training.json").write_text(json.dumps({"steps": 9, "ema": False}))
    (tmp_path / "path/to/the/base").mkdir(parents=True)
    (tmp_path / "path/to/the/base/model").symlink_to(model_folder)
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"model": CONFIG["model"] | {"lora_rank": 2}}))
    describe(run, exported)
    first, second = (exported / "README.md").read_text().split("```python\n")[1:]
    names: dict[str, Any] = {}
    exec(first.split("```")[0].replace("training data", "data"), names)  # 8 tokens
    assert names["image"].size == (16, 16)
    exec(second.split("```")[0], names)
    assert names["pipe"].get_list_adapters()["unet"]
