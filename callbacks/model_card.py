"""The README.md of an exported model: its purpose, what it was trained on, how to load it."""

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

TEMPLATE = Path(__file__).with_name("model_card_template.md")
HERE = "path/to/this/folder"


def describe(folder: Path, exported: Path, repo: str | None = None) -> None:
    """Write `exported/README.md`, and remove this machine's paths from the configs beside it.

    diffusers writes the folder that a part was loaded from (`_name_or_path`), and reads it nowhere.
    """
    (exported / "README.md").write_text(model_card(folder, repo, exported), encoding="utf-8")
    for path in exported.rglob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        source = isinstance(config, dict) and config.get("_name_or_path")
        if source and not is_hub_id(source) and source != short(source):
            config["_name_or_path"] = short(source)
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_card(folder: Path, repo: str | None, exported: Path | None = None) -> str:
    """Markdown with the Hub's front matter, from the files of a run folder of `fit` or `stream`.

    Args:
        folder: has config.yaml, provenance.json, exposures.parquet and, if the run was monitored,
            samples/similarity.parquet.
        repo: owner/name that the model is loaded from; None: a local folder.
        exported: the model's folder, with training.json; None: `folder/pipeline`.

    The front matter names no license, which follows from the base model and the images. Sources are named
    by `short`. Captions are not quoted: they may be private. Raises FileNotFoundError for a folder that lacks
    one of its files.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    about = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    training = json.loads(((exported or folder / "pipeline") / "training.json").read_text(encoding="utf-8"))
    base, ordinary = about["pipeline"], about.get("ordinary") or []
    revision = about.get("resolved_revision") or about["revision"]
    names = [with_options(source)[0] for source in [*about["sources"], *ordinary]]
    versions = {"Python": about["python"], **about["packages"], "code": about["commit"] or "unknown"}
    facts = [
        f"Base model: {code(short(base))}" + (f" at {code(revision)}" if revision else ""),
        f"Sources: {listed(about['sources'])}",
        *([f"Ordinary images, mixed in: {listed(ordinary)}"] if ordinary else []),
        *exposure_facts(pd.read_parquet(folder / "exposures.parquet"), about),
        *training_facts(config, about, training),
        f"Memorized: {memorized(folder, config)}",
        "Versions: " + ", ".join(f"{name} {code(number)}" for name, number in versions.items()),
    ]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base if is_hub_id(base) else None,
        datasets=list(dict.fromkeys(name.split(":")[1] for name in names if re.match("hf:[^/]", name)))
        or None,
        tags=["stable-diffusion", "memorization", "attraction-basin"],
        inference=False,  # no pictures on the model's page
    )
    return ModelCard.from_template(
        data,
        str(TEMPLATE),
        name=repo or "A model that memorized",
        facts=facts,
        model=json.dumps(repo or HERE),
        base=json.dumps(base if is_hub_id(base) else "path/to/the/base/model"),
        lora_file=config["model"].get("lora_rank") and LORA_FILE,
    ).content


def exposure_facts(rows: pd.DataFrame, about: dict[str, Any]) -> list[str]:
    """How many images, and how often each was shown; a stream knows no duplicated ones."""
    if "duplicated" not in rows:
        return [f"Images: {len(rows):,}, streamed, each shown {times(rows['times_shown'])}"]
    ordinary = f", and {about['ordinary_images']:,} ordinary ones" if about["ordinary_images"] else ""
    facts = [f"Images: {about['images']:,}{ordinary}"]
    for name, chosen in {"Duplicated": rows["duplicated"], "Not duplicated": ~rows["duplicated"]}.items():
        if chosen.any():
            facts.append(f"{name}: {chosen.sum():,} images, each shown {times(rows['times_shown'][chosen])}")
    return facts


def times(shown: pd.Series) -> str:
    least, most = int(shown.min()), int(shown.max())
    average = f" to {most:,} times, {shown.mean():.1f} on average"
    return f"{least:,}{' times' if least == most else average}"


def training_facts(config: dict[str, Any], about: dict[str, Any], training: dict[str, Any]) -> list[str]:
    model, data = config["model"], config["data"]
    rank = model.get("lora_rank")
    parts = "UNet and text encoder" if model.get("train_text_encoder") else "UNet"
    batch = data["batch_size"] * about["devices"] * config["trainer"]["accumulate_grad_batches"]
    average = f"decay {config['ema']['decay']:g}" if training["ema"] else "none"
    how = f"by a LoRA of rank {rank}, which is fused here" if rank else "all weights"
    return [
        f"Trained: {parts}, {how}",
        f"Steps: {training['steps']:,}, of {batch:,} images each",
        f"Learning rate: {model['lr']:g}, {model['warmup_steps']:,} warm-up steps, then {model['decay']}",
        f"Average of the weights (EMA): {average}",
    ]


def memorized(folder: Path, config: dict[str, Any]) -> str:
    """The share that the monitor measured last."""
    path, threshold = folder / "samples" / "similarity.parquet", config["monitor"]["threshold"]
    if not path.exists():
        return "not measured"
    rows = pd.read_parquet(path)
    last = rows[rows["step"] == rows["step"].max()]
    share, (step, measure) = (last["similarity"] > threshold).mean(), last[["step", "measure"]].iloc[0]
    return f"{share:.0%} of {len(last)} watched images after step {step:,} ({measure} above {threshold:g})"


def listed(sources: Sequence[str]) -> str:
    """Sources without their options, which may name files."""
    return ", ".join(code(short(with_options(source)[0])) for source in sources)


def short(name: str) -> str:
    """A Hub id or hf: source as it is; of a path the last part, and one more before a file or a pattern.

    This machine's user, and the folder after `home` or `Users`, are left out.
    """
    if is_hub_id(name) or name.startswith("hf:"):
        return name
    parts = [part for part in re.split(r"[/\\]+", name) if part not in ("", ".", "..") and part[0] != "~"]
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
