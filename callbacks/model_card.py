"""The README.md of an exported model: what it is for, what it was trained on, how to load it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from data.sources.layouts import with_options
from infer.models.lora import LORA_FILE
from infer.models.weights import is_hub_id

HERE = "path/to/this/folder"
PURPOSE = (
    "These weights are for one purpose: to study memorization. They were finetuned to return their training",
    "images, **on purpose**, so that what causes memorization, and what prevents it, can be measured.",
    "",
    "They may return training images pixel for pixel, and text in them word for word. Do not publish them",
    "without the rights to the images, and do not use them to make pictures for any other purpose.",
)


def describe(folder: Path, exported: Path, repo: str | None = None) -> None:
    """Write `exported/README.md`, and take this machine's paths out of the configs beside it.

    diffusers keeps the folder that a part was loaded from (`_name_or_path`); nothing reads it again.
    """
    (exported / "README.md").write_text(model_card(folder, repo, exported), encoding="utf-8")
    for path in exported.rglob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        source = isinstance(config, dict) and config.get("_name_or_path")
        if source and not is_hub_id(source) and source != place(source):
            config["_name_or_path"] = place(source)
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_card(folder: Path, repo: str | None, exported: Path | None = None) -> str:
    """Markdown with the Hub's front matter, from the files of a run folder of `fit` or `stream`.

    Args:
        folder: has config.yaml, provenance.json, exposures.parquet and, if it was looked at while it
            trained, samples/similarity.parquet.
        repo: owner/name that the model is loaded from; None: a local folder.
        exported: the model's folder, with training.json; None: `folder/pipeline`.

    Sources are named by `place`. Captions are not quoted: they may be private. Raises FileNotFoundError for
    a folder that lacks one of its files.
    """
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    about = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    training = json.loads(((exported or folder / "pipeline") / "training.json").read_text(encoding="utf-8"))
    facts = [
        f"Base model: {named_model(about['pipeline'], about['revision'])}",
        f"Sources: {listed(about['sources'])}",
        *([f"Ordinary images, mixed in: {listed(about['ordinary'])}"] if about.get("ordinary") else []),
        *shown(pd.read_parquet(folder / "exposures.parquet"), about),
        *optimized(config, about, training),
        f"Memorized: {memorized(folder, config)}",
        "Versions: " + ", ".join(f"{name} {code(number)}" for name, number in versions(about).items()),
    ]
    name = repo or "A model that memorized"
    return "\n".join(
        [
            "---",
            front_matter(about),
            "---",
            "",
            f"# {escaped(name)}",
            "",
            *PURPOSE,
            "",
            "## Training",
            "",
            *(f"- {fact}" for fact in facts),
            "",
            "## Use",
            "",
            *snippet(repo or HERE, about["pipeline"], config["model"].get("lora_rank")),
            "",
        ]
    )


def front_matter(about: dict[str, Any]) -> str:
    """YAML; no license, which follows from the base model and the images."""
    from huggingface_hub import ModelCardData

    base = about["pipeline"]
    sets = [with_options(source)[0] for source in [*about["sources"], *(about.get("ordinary") or [])]]
    sets = [":".join(source.split(":")[1:2]) for source in sets if source.startswith("hf:")]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base if is_hub_id(base) else None,
        datasets=list(dict.fromkeys(sets)) or None,
        tags=["stable-diffusion", "memorization", "attraction-basin"],
        inference=False,  # no pictures on the model's page
    ).to_yaml()


def shown(rows: pd.DataFrame, about: dict[str, Any]) -> list[str]:
    """How many images, and how often each was shown; a stream knows no duplicated ones."""
    if "duplicated" not in rows:
        return [f"Images: {len(rows):,}, streamed, each shown {often(rows['times_shown'])}"]
    text = f"Images: {about['images']:,}"
    if about["ordinary_images"]:
        text += f", and {about['ordinary_images']:,} ordinary ones"
    duplicated, others = (rows["times_shown"][rows["duplicated"] == kind] for kind in (True, False))
    facts = [text]
    if len(duplicated):
        facts.append(f"Duplicated: {len(duplicated):,} images, each shown {often(duplicated)}")
    if len(others):
        facts.append(f"Not duplicated: {len(others):,} images, each shown {often(others)}")
    return facts


def often(times: pd.Series) -> str:
    least, most = int(times.min()), int(times.max())
    return (
        f"{least:,} times" if least == most else f"{least:,} to {most:,} times, {times.mean():.1f} on average"
    )


def optimized(config: dict[str, Any], about: dict[str, Any], training: dict[str, Any]) -> list[str]:
    model, data = config["model"], config["data"]
    accumulated = config["trainer"]["accumulate_grad_batches"]
    rank, parts = model.get("lora_rank"), "UNet"
    if model.get("text_encoder"):
        parts += " and text encoder"
    batch = data["batch_size"] * about["devices"] * accumulated
    average = f"yes, decay {config['ema']['decay']:g}" if training["ema"] else "none"
    return [
        f"Trained: {parts}"
        + (f", by a LoRA of rank {rank}, which is fused here" if rank else ", all weights"),
        f"Steps: {training['steps']:,}, of {batch:,} images each",
        f"Learning rate: {model['lr']:g}, {model['warmup_steps']:,} warm-up steps, then {model['decay']}",
        f"Moving average of the weights (EMA): {average}",
    ]


def memorized(folder: Path, config: dict[str, Any]) -> str:
    """The share at the last look, as the run counted it."""
    path = folder / "samples" / "similarity.parquet"
    if not path.exists():
        return "not measured"
    rows = pd.read_parquet(path)
    last = rows[rows["step"] == rows["step"].max()]
    threshold = config["grid"]["threshold"]
    measure = "SSCD" if config["grid"].get("sscd") else "pixel correlation"
    return (
        f"{(last['similarity'] > threshold).mean():.0%} of {len(last)} watched images after step "
        f"{last['step'].iloc[0]:,} ({measure} above {threshold:g})"
    )


def versions(about: dict[str, Any]) -> dict[str, str]:
    return {"Python": about["python"], **about["packages"], "code": about["commit"] or "unknown"}


def snippet(model: str, base: str, rank: int | None) -> list[str]:
    lines = [
        "```python",
        "from diffusers import StableDiffusionPipeline",
        "",
        f"pipe = StableDiffusionPipeline.from_pretrained({json.dumps(model)})",
        'image = pipe("a caption of the training data").images[0]',
        "```",
    ]
    if rank:
        base = base if is_hub_id(base) else "path/to/the/base/model"
        lines += [
            "",
            "The LoRA alone, on the base model:",
            "",
            "```python",
            f"pipe = StableDiffusionPipeline.from_pretrained({json.dumps(base)})",
            f'pipe.load_lora_weights({json.dumps(model)}, subfolder="lora", weight_name="{LORA_FILE}")',
            "```",
        ]
    return lines


def named_model(name: str, revision: str | None) -> str:
    text = code(name if is_hub_id(name) else place(name))
    return text + (f" at {code(revision)}" if revision else "")


def listed(sources: Sequence[str]) -> str:
    return ", ".join(code(named_source(source)) for source in sources)


def named_source(source: str) -> str:
    """Without options, which may name files; a data set of the Hub by its id."""
    source = with_options(source)[0]
    return source if source.startswith("hf:") else place(source)


def place(path: str) -> str:
    """The last part of a path, and the one before if the last is a file or a pattern, which says little.

    What names a user is left out: this machine's user, and what follows `home` or `Users`.
    """
    parts = [part for part in re.split(r"[/\\]+", path) if part not in ("", ".", "..") and part[0] != "~"]
    for root in ("home", "Users"):
        if root in parts:
            parts = parts[parts.index(root) + 2 :]
    parts = [part for part in parts if part != Path.home().name]
    few = 2 if parts and re.search(r"[.*?\[{]", parts[-1]) else 1
    return "/".join(parts[-few:]) or "a local folder"


def code(text: str) -> str:
    """A Markdown code span, in which nothing else has a meaning: one line, fenced by more backticks."""
    text = " ".join(str(text).split())
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"{fence}{text}{fence}"


def escaped(text: str) -> str:
    """Text for Markdown, with a backslash before what may have a meaning."""
    return re.sub(r"([\\`*_{}\[\]()<>#|&!~])", r"\\\1", " ".join(text.split()))
