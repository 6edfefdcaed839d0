"""Comparison folders for the tests of the report, and what a browser would make of a page."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

PROMPTS = {"cat": "a <script>alert(1)</script> cat", "dog": """a "dog" & an 'owl'""", "fox": "a fox"}
SIMILARITY = {"none": 0.937, "base_model": 0.352, "og<b>stp": 0.413}
CLIP = {"none": 0.311, "base_model": 0.308, "og<b>stp": 0.287}
SWEEP = {f"scenes/stp(timestep={value})": value for value in (400, 500, 600)}


class Page(HTMLParser):
    """Tags with attributes, the text outside of scripts and styles, and the gallery's data."""

    def __init__(self, path: Path):
        super().__init__()
        self.source, self.tags, self.text, self.skip = path.read_text(encoding="utf-8"), [], "", False
        self.scripts: dict[str | None, str] = {}
        self.feed(self.source)
        self.data: dict[str, Any] = json.loads(self.scripts["data"])
        self.strips = self.scripts["strips"].split("\n")

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.skip = tag in ("script", "style")
        self.text += " "

    def handle_endtag(self, tag):
        self.skip = False

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script" and self.skip:
            self.scripts[attributes.get("id")] = self.scripts.get(attributes.get("id"), "") + data
        self.text += "" if self.skip else data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    def facts(self, name: str) -> list[dict[str, str]]:
        """Of the images of a mitigation, row by row."""
        index = self.data["names"].index(name)
        cells = [row["cells"][index] for row in self.data["rows"]]
        return [dict(zip(self.data["facts"], cell["facts"], strict=True)) for cell in cells if cell]


def build(
    folder: Path, prompts: dict[str, str], mitigations: dict[str, float], samples: int = 2, size: int = 8
) -> Path:
    """A comparison of mitigations, with their similarities; og*, stp* and scenes/* have a transition."""
    noise, table = np.random.default_rng(0), []
    (folder / "training").mkdir(parents=True)
    for prompt_id in prompts:
        Image.new("RGB", (size, size), "teal").save(folder / "training" / f"{prompt_id}.png")
    keys = [(prompt_id, sample) for prompt_id in prompts for sample in range(samples)]
    step = np.arange(50)
    for shade, (name, similarity) in enumerate(mitigations.items()):
        (folder / name / "images").mkdir(parents=True)
        timestep = float(SWEEP.get(name, 640)) if name.startswith(("og", "stp", "scenes")) else None
        rows = []
        for index, (prompt_id, sample) in enumerate(keys):
            image = f"images/{prompt_id}-{sample}.png"
            pixels = np.array([30 * shade, min(255, 40 * index), 90]) + noise.integers(0, 9, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / image)
            rows.append({
                "prompt_id": prompt_id, "sample": sample, "prompt": prompts[prompt_id], "seed": 2**62 + index,
                "mitigation": name, "guidance_scale": 7.5, "transition_timestep": timestep, "nfe": 100,
                "seconds": 0.5, "image": image, "top_train_id": "cat", "similarity_top": 0.9,
                "similarity_own": similarity - index / 99, "clip_score": CLIP.get(name, 0.3),
            })  # fmt: skip
        pd.DataFrame(rows).to_parquet(folder / name / "samples.parquet")
        pd.DataFrame({
            "prompt_id": np.repeat([key[0] for key in keys], 50),
            "sample": np.repeat([key[1] for key in keys], 50),
            "step": np.tile(step, len(keys)), "timestep": np.tile(981.0 - 20 * step, len(keys)),
            "unconditional_rms": 1.0, "conditional_rms": 1.0,
            "difference_rms": np.tile(np.where(step < 9, np.nan, 0.1 + step / 1000), len(keys)),
            "guidance_scale": np.tile(np.where(step < 17 * bool(timestep), -2, 7.5), len(keys)),
        }).to_parquet(folder / name / "traces.parquet")  # fmt: skip
        table.append({
            "mitigation": name, "images": len(keys), "similarity_own_mean": similarity,
            "similarity_own_mean_low": similarity - 0.011, "similarity_own_mean_high": similarity + 0.012,
            "similarity_own_mean_delta": similarity - mitigations["none"],
            "similarity_own_mean_delta_low": similarity - mitigations["none"] - 0.021,
            "similarity_own_mean_delta_high": similarity - mitigations["none"] + 0.022,
            "similarity_own_std": 0.021, "similarity_own_p95": 0.971, "fid": None,
            "share_above_05": 0.825,
            "clip_score_mean": CLIP.get(name, 0.3), "nfe_mean": 100.0, "seconds_per_image": 0.53,
            "transition_timestep_median": timestep,
        })  # fmt: skip
    pd.DataFrame(table).to_parquet(folder / "comparison.parquet")
    write_about(folder)
    return folder


def write_about(folder: Path, **changes: Any) -> None:
    """What a comparison says of itself."""
    names = ("base_model", "features", "memorized")
    about = {"title": "a title", "model": "m", "descriptor": "correlation", "clip": "c"} | dict.fromkeys(
        names
    )
    about |= {"notes": [], "sweeps": []} | changes
    (folder / "comparison.json").write_text(json.dumps(about))


def three(folder: Path) -> Path:
    """Three mitigations, three prompts, two samples; the fox has no training image and one image is lost."""
    build(folder, PROMPTS, SIMILARITY)
    (folder / "training" / "fox.png").unlink()
    (folder / "none" / "images" / "dog-1.png").unlink()
    return folder


def swept(folder: Path, prompts: int = 12, size: int = 8) -> Path:
    """All that a comparison can have: a sweep, a table of the memorized prompts, and published figures."""
    mitigations = {"none": 0.9, "stp": 0.5, "og_stp": 0.3} | {name: v / 1000 for name, v in SWEEP.items()}
    build(folder, {f"p{i}": f"prompt number {i}" for i in range(prompts)}, mitigations, samples=1, size=size)
    table = pd.read_parquet(folder / "comparison.parquet")
    published = table["mitigation"].map({"none": 0.655, "stp": 0.286})
    table.assign(similarity_own_p95_published=published, fid_published=published * 20).to_parquet(
        folder / "comparison.parquet"
    )
    table.assign(similarity_own_mean=0.111).to_parquet(folder / "comparison_memorized.parquet")
    points = [{"value": value, "mitigation": name} for name, value in reversed(SWEEP.items())]
    notes = ["a note on the chosen <u>", "another"]
    memorized = {"threshold": 0.5, "measure": "SSCD", "prompts": 7, "of": prompts, "notes": notes}
    sweep = {"preset": "scenes/stp", "option": "timestep", "points": points}
    write_about(folder, title="swept", features="clip, 99 images", memorized=memorized, sweeps=[sweep])
    return folder
