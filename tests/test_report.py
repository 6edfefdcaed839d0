import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from infer import report
from infer.report import write_report

PROMPTS = {"cat": "a <script>alert(1)</script> cat", "dog": """a "dog" & an 'owl'""", "fox": "a fox"}
SIMILARITY = {"none": 0.937, "base_model": 0.352, "og<b>stp": 0.413}
CLIP = {"none": 0.311, "base_model": 0.308, "og<b>stp": 0.287}
TRANSITION = {"none": None, "base_model": None, "og<b>stp": 640.0}


class Page(HTMLParser):
    """What a browser would make of it: tags with attributes, and the text outside of scripts and styles."""

    def __init__(self, path: Path):
        super().__init__()
        self.source, self.tags, self.text, self.skip = path.read_text(encoding="utf-8"), [], "", False
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.skip = tag in ("script", "style")
        self.text += " "

    def handle_endtag(self, tag):
        self.skip = False

    def handle_data(self, data):
        self.text += "" if self.skip else data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    def embedded(self) -> list[str]:
        return [image["src"] for image in self.all("img") if image.get("src")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three mitigations, three prompts, two samples; the fox has no training image and one image is lost."""
    table = []
    for shade, name in enumerate(SIMILARITY):
        (tmp_path / name / "images").mkdir(parents=True)
        images, steps = [], []
        for prompt_id, prompt in PROMPTS.items():
            for sample in range(2):
                image = f"images/{prompt_id}-{sample}.png"
                Image.new("RGB", (8, 8), (80 * shade, 40 * len(images), 90)).save(tmp_path / name / image)
                images.append({
                    "prompt_id": prompt_id, "sample": sample, "prompt": prompt, "seed": 2**62 + len(images),
                    "mitigation": name, "guidance_scale": 7.5, "transition_timestep": TRANSITION[name],
                    "nfe": 100, "seconds": 0.5, "image": image, "top_train_id": "cat", "similarity_top": 0.9,
                    "similarity_own": SIMILARITY[name] - len(images) / 99, "clip_score": CLIP[name],
                })  # fmt: skip
                steps += [
                    {"prompt_id": prompt_id, "sample": sample, "step": step, "timestep": 981 - 20 * step,
                     "unconditional_rms": 1.0, "conditional_rms": 1.0, "guidance_scale": 7.5,
                     "difference_rms": float("nan") if step < 9 else 0.1}
                    for step in range(50)
                ]  # fmt: skip
        pd.DataFrame(images).to_parquet(tmp_path / name / "samples.parquet")
        pd.DataFrame(steps).to_parquet(tmp_path / name / "traces.parquet")
        table.append({
            "mitigation": name, "images": 6, "similarity_own_mean": SIMILARITY[name],
            "similarity_own_mean_low": SIMILARITY[name] - 0.011,
            "similarity_own_mean_high": SIMILARITY[name] + 0.012,
            "similarity_own_mean_delta": SIMILARITY[name] - SIMILARITY["none"],
            "similarity_own_std": 0.021, "similarity_own_p95": 0.971, "share_above_05": 0.825, "fid": None,
            "clip_score_mean": CLIP[name], "nfe_mean": 100.0, "seconds_per_image": 0.53,
            "transition_timestep_median": TRANSITION[name], "lpips_mean": 0.678,
        })  # fmt: skip
    pd.DataFrame(table).to_parquet(tmp_path / "comparison.parquet")
    (tmp_path / "training").mkdir()
    for prompt_id in ("cat", "dog"):
        Image.new("RGB", (8, 8), "teal").save(tmp_path / "training" / f"{prompt_id}.png")
    (tmp_path / "none" / "images" / "dog-1.png").unlink()
    return tmp_path


def test_the_table_shows_every_number(folder: Path):
    text = Page(write_report(folder)).text
    for name in SIMILARITY:
        assert {f"{SIMILARITY[name]:.3f}", f"{CLIP[name]:.3f}"} <= set(text.split())
        assert f"{SIMILARITY[name] - 0.011:.3f} to {SIMILARITY[name] + 0.012:.3f}" in text
    assert {"0.021", "0.971", "82.5%", "100.0", "0.53", "640", "0.678"} <= set(re.split(r"[\sΔ]+", text))
    assert f"Δ {SIMILARITY['og<b>stp'] - SIMILARITY['none']:+.3f}" in text
    assert "FID" not in text  # all null: hidden


def test_best_values_are_marked_but_not_those_of_the_base_model(folder: Path):
    source = Page(write_report(folder)).source
    assert re.findall(r'<td class="best">([\d.]+)', source) == ["0.311", "0.413"]


def test_the_headline_follows_from_the_numbers(folder: Path):
    text = Page(write_report(folder)).text
    assert "match their training image at 0.94; og<b>stp brings this to 0.41" in text
    assert "CLIP score goes from 0.31 to 0.29" in text
    assert "base model is at 0.35" in text
    table = pd.read_parquet(folder / "comparison.parquet")
    assert "no mitigation lowers this" in report.headline(table.assign(similarity_own_mean=0.9))
    assert "CLIP" not in report.headline(table.drop(columns="clip_score_mean"))


def test_captions_and_names_are_escaped(folder: Path):
    (folder / "comparison.json").write_text(json.dumps({"title": "<i>T</i>", "notes": ["<u>N</u>"]}))
    page = Page(write_report(folder))
    assert len(page.all("script")) == 1 and "alert(1)</script>" not in page.source
    assert not page.all("u") and "<b>stp" not in page.source
    assert all(prompt in page.text for prompt in PROMPTS.values())
    assert {attributes.get("title") for attributes in page.all("p")} >= set(PROMPTS.values())
    assert "<i>T</i>" in page.text and "<u>N</u>" in page.text


def test_the_page_needs_no_network_and_embeds_each_image_once(folder: Path):
    page = Page(write_report(folder))
    urls = set(re.findall(r"\w+://[^\s\"'<]*", page.source))
    assert urls == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert len(page.all("svg")) == 3 and not page.all("link")
    assert all(src.startswith("data:image/webp;base64,") for src in page.embedded())
    assert len(page.embedded()) == 3 * 6 - 1 + 2  # generated, one of them lost, and two training images
    assert not list(folder.glob("*.part"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_rows_are_sorted_by_similarity_and_facts_go_with_each_image(folder: Path):
    page = Page(write_report(folder))
    shots = [button for button in page.all("button") if button.get("class") == "shot"]
    assert [shot["data-name"] for shot in shots[:3]] == list(SIMILARITY)
    of_none = [dict(json.loads(shot["data-facts"])) for shot in shots if shot["data-name"] == "none"]
    similarities = [float(facts["similarity to own"]) for facts in of_none]
    assert similarities == sorted(similarities, reverse=True)
    assert of_none[0]["seed"] == str(2**62)  # exact: a number in JavaScript would round it
    assert of_none[0]["transition"] == "–"


def test_what_is_missing_is_counted(folder: Path, monkeypatch):
    text = Page(write_report(folder)).text
    assert "Missing training images in these rows: 1 of 3." in text
    assert "Missing generated images in these rows: 1 of 18." in text
    assert "rows are shown" not in text
    monkeypatch.setattr(report, "MAX_ROWS", 2)
    page = Page(write_report(folder))
    assert "2 of 6 rows are shown" in page.text and len(page.embedded()) == 2 * 3 + 1


def test_large_images_are_scaled_down(tmp_path: Path):
    Image.new("RGB", (512, 384)).save(tmp_path / "large.png")
    Image.new("RGB", (96, 96)).save(tmp_path / "small.png")
    assert not report.picture(tmp_path / "large.png")["small"]
    assert report.picture(tmp_path / "small.png")["small"]
    assert report.picture(tmp_path / "none.png") is None


@pytest.mark.parametrize("column, value", [("image", "../../secret.png"), ("prompt_id", "../../secret")])
def test_a_path_that_leaves_its_folder_is_refused(folder: Path, column: str, value: str):
    path = folder / "none" / "samples.parquet"
    samples = pd.read_parquet(path)
    samples.loc[0, column] = value
    samples.to_parquet(path)
    with pytest.raises(ValueError, match="secret"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_scores_may_be_missing(folder: Path):
    for name in SIMILARITY:
        path = folder / name / "samples.parquet"
        unscored = {"similarity_own": None, "similarity_top": None, "top_train_id": None, "clip_score": None}
        pd.read_parquet(path).assign(**unscored).to_parquet(path)
    table = pd.read_parquet(folder / "comparison.parquet")
    table[["mitigation", "images"]].to_parquet(folder / "comparison.parquet")
    assert "–" in Page(write_report(folder)).text


def test_without_a_comparison_the_error_says_what_to_run(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="python -m infer compare"):
        write_report(tmp_path)
