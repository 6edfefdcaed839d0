"""Compare mitigations over the same prompts and seeds: one run folder each, one table, one page."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
from rich import box
from rich.table import Table

from data.captioned import SHARD_SUFFIXES, CaptionedImages, load_captioned, shard_paths
from data.lora import check_lora
from data.pipeline import check_pipeline
from infer.alignment import ClipScore, check_clip
from infer.generate import Generate, PromptData
from infer.runfolder import save_image, write_atomically
from infer.schedulers import Scheduler
from infer.score import TrainingSet, score, summarize
from infer.similarity import check_sscd, pixel_descriptor, sscd_descriptor

PAPER = ["none", "stp", "og_stp", "dtp", "og_dtp"]


@dataclass
class Comparison:
    """What to compare.

    Args:
        out: comparison folder.
        run: training run folder; gives pipeline, base_pipeline, prompts and training where these are not set.
        pipeline: model under test: diffusers folder, Hub id or single-file checkpoint.
        single_file_config: for a single file: diffusers folder or Hub id with its architecture's configs and
            tokenizer.
        lora: LoRA weights on top of the model under test: .safetensors file, folder or Hub id.
        lora_scale: of the LoRA.
        base_pipeline: the untouched model it was finetuned from: a row of its own. (null: that of `run`.)
        prompts: prompt file or training run folder.
        training: sources of the training images, for the similarity search.
        mitigations: names of presets in configs/mitigation, or paths of YAML files.
        samples_per_prompt: images per prompt.
        seed: base seed.
        limit: only the first prompts.
        scheduler: the pipeline's own, or another kind built from its config.
        timestep_spacing: in place of the scheduler's own.
        num_inference_steps: denoising steps.
        guidance_scale: of classifier-free guidance.
        resolution: side in pixels; null: the UNet's own.
        dtype: of the weights.
        batch_size: images per UNet call and device.
        clip: transformers CLIPModel folder or Hub id, for the alignment.
        sscd: SSCD model file (.pt TorchScript or .onnx), for sscd_* columns.
        accelerator: as in Lightning's Trainer.
        devices: as in Lightning's Trainer.
    """

    out: str
    run: str | None = None
    pipeline: str | None = None
    single_file_config: str | None = None
    lora: str | None = None
    lora_scale: float = 1.0
    base_pipeline: str | None = None
    prompts: str | None = None
    training: list[str] = field(default_factory=list)
    mitigations: list[str] = field(default_factory=lambda: list(PAPER))
    samples_per_prompt: int = 1
    seed: int = 0
    limit: int | None = None
    scheduler: Scheduler = "own"
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    resolution: int | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: int = 16
    clip: str = "openai/clip-vit-base-patch16"
    sscd: str | None = None
    accelerator: str = "auto"
    devices: int | str = "auto"

    def __post_init__(self) -> None:
        names = [Path(name).stem for name in self.mitigations]  # of their folders and rows
        if len(set(names)) < len(names):
            raise ValueError(f"a mitigation is named twice (its file names its folder): {names}")
        if "base_model" in names:
            raise ValueError("no mitigation can be called base_model: that is the untouched model's row")
        if self.run:
            about = Path(self.run) / "provenance.json"
            if not about.exists():
                raise FileNotFoundError(f"{self.run!r} is no training run: it has no provenance.json")
            provenance = json.loads(about.read_text())
            self.pipeline = self.pipeline or f"{self.run}/pipeline"
            self.base_pipeline = self.base_pipeline or provenance["pipeline"] or None
            self.prompts = self.prompts or self.run
            self.training = self.training or [*provenance["sources"], *provenance["ordinary"]]
        for name in ("pipeline", "prompts", "training"):
            if not getattr(self, name):
                raise ValueError(f"give --{name}, or --run with a training run folder")
        check_pipeline(self.pipeline, self.single_file_config)
        check_lora(self.lora, self.lora_scale)
        if self.base_pipeline:
            check_pipeline(self.base_pipeline)
        # what is needed last should not be found missing last
        check_clip(self.clip)
        if self.sscd:
            check_sscd(self.sscd)
        for source in self.training:
            if source.endswith(SHARD_SUFFIXES):
                shard_paths(source)
            elif not Path(source).is_dir():
                raise FileNotFoundError(f"no training images {source!r}")

    def module(self, pipeline: str) -> Generate:
        tested = pipeline == self.pipeline
        return Generate(
            pipeline=pipeline,
            single_file_config=self.single_file_config if tested else None,
            lora=self.lora if tested else None,
            lora_scale=self.lora_scale if tested else 1.0,
            scheduler=self.scheduler,
            timestep_spacing=self.timestep_spacing,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            resolution=self.resolution,
            dtype=self.dtype,
        )

    def data(self) -> PromptData:
        return PromptData(self.prompts, None, self.samples_per_prompt, self.seed, self.limit, self.batch_size)

    def training_images(self) -> CaptionedImages:
        """The images that the model saw: all of the sources, or those that the training run showed."""
        images = load_captioned(*self.training)
        shown = Path(self.run) / "exposures.parquet" if self.run else None
        if not (shown and shown.exists()):
            return images
        rows = pd.read_parquet(shown)
        seen = set(rows["id"][rows["times_shown"] > 0])
        return CaptionedImages([sample for sample in images.samples if sample.id in seen], images.skipped)


def finish(comparison: Comparison, folders: dict[str, Path], resolution: int) -> pd.DataFrame:
    """Score every run folder, and write training images, `comparison.parquet` and `comparison.json`."""
    out = Path(comparison.out)
    descriptors = {"similarity": pixel_descriptor}
    if comparison.sscd:
        descriptors["sscd"] = sscd_descriptor(comparison.sscd)
    training = TrainingSet.embed(comparison.training_images(), resolution, descriptors)
    clip = ClipScore(comparison.clip)
    scored = {name: score(folder, training, clip) for name, folder in folders.items()}
    used = dict.fromkeys(key for rows in scored.values() for key in rows["prompt_id"])
    orphans = [key for key in used if key not in training.images.position]
    for key in used:
        if key in training.images.position:
            save_image(
                training.images[training.images.position[key]].rgb(resolution),
                out / "training" / f"{key}.png",
            )
    table = pd.DataFrame([summarize(name, rows) for name, rows in scored.items()])
    write_atomically(out / "comparison.parquet", lambda part: table.to_parquet(part, index=False))
    about = {
        "title": out.parent.name if out.name == "compare" else out.name,
        "model": comparison.pipeline,
        "base_model": comparison.base_pipeline,
        "descriptor": "correlation of 32x32 RGB" + (", SSCD" if comparison.sscd else ""),
        "notes": [
            f"{len(used)} prompts x {comparison.samples_per_prompt} samples, "
            f"guidance {comparison.guidance_scale:g}, {comparison.num_inference_steps} steps; "
            f"top matches are searched among {len(training.images):,} images."
        ],
    }
    if orphans:
        about["notes"].append(f"{len(orphans)} prompts have no image of their own in the training set.")
    write_atomically(out / "comparison.json", lambda part: part.write_text(json.dumps(about, indent=2)))
    return table


SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "similarity_own_mean": ("own sim", "{:.3f}".format),
    "similarity_own_p95": ("p95", "{:.3f}".format),
    "similarity_top_mean": ("top sim", "{:.3f}".format),
    "sscd_own_mean": ("SSCD", "{:.3f}".format),
    "sscd_own_p95": ("p95", "{:.3f}".format),
    "clip_score_mean": ("CLIP", "{:.3f}".format),
    "nfe_mean": ("NFE", "{:.1f}".format),
    "seconds_per_image": ("s/img", "{:.3f}".format),
    "fired_share": ("fired", "{:.0%}".format),
    "transition_timestep_median": ("t", "{:.0f}".format),
}


def terminal_table(table: pd.DataFrame) -> Table:
    """The comparison for the terminal: one line per mitigation."""
    shown = {key: value for key, value in SHOWN.items() if key in table and table[key].notna().any()}
    out = Table(title="same prompts, same seeds", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("mitigation", no_wrap=True)
    for title, _ in shown.values():
        out.add_column(title, justify="right", no_wrap=True)
    for _, row in table.iterrows():
        out.add_row(
            row["mitigation"],
            *("" if pd.isna(row[key]) else form(row[key]) for key, (_, form) in shown.items()),
        )
    return out
