"""What is measured: the commands of each row for a number of records, in a folder of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infer.models.weights import no_warnings, quiet_bars
from tests.bench.growth import folders
from tests.conftest import ROOT, random_pipeline

CLIP = str(ROOT / "data/scenes/judge")
FEW = 64  # images where the training images are many, and the other way round
Commands = list[list[str]]


@dataclass(frozen=True)
class Work:
    """`make(folder, count)` writes what the commands need, and returns their arguments."""

    of: str
    make: Callable[[Path, int], Commands]
    ranks: int = 1


def scored(folder: Path, images: int, training: int) -> Commands:
    run, shard = folders.finished(folder / "none", images), folders.shard(folder / "0.tar", training)
    measures = ["--training", shard, "--clip", CLIP, "--cache", str(folder / "cache"), "--device", "cpu"]
    return [["score", "--runs", run, *measures]]


def reported(folder: Path, count: int) -> Commands:
    return [["report", folders.comparison(folder, count)]]


def indexed(folder: Path, count: int) -> Commands:
    out, shard = str(folder / "index.safetensors"), folders.shard(folder / "0.tar", count)
    cache = str(folder / "cache")
    return [["index", "--training", shard, "--out", out, "--resolution", "8", "--cache", cache]]


def predicted(folder: Path, count: int, out: Path, ranks: int = 1) -> Commands:
    """One batch of `count` prompts, or none where the run folder has all."""
    with no_warnings(), quiet_bars():
        random_pipeline().save_pretrained(folder / "model")
    prompts = folders.prompts(folder / "prompts.jsonl", count)
    return [[
        "predict", "--model.pipeline", str(folder / "model"), "--model.num_inference_steps", "2", "--out",
        str(out), "--prompts", prompts, "--batch_size", "4", "--trainer.accelerator", "cpu",
        "--trainer.devices", str(ranks), "--trainer.limit_predict_batches", "1",
    ]]  # fmt: skip


def planned(folder: Path, count: int, ranks: int = 1) -> Commands:
    return predicted(folder, count, folder / "run", ranks)


def merged(folder: Path, count: int) -> Commands:
    return predicted(folder, count, Path(folders.interrupted(folder / "run", count)))


WORK = {
    "score": Work("images, against 64 training images", lambda folder, n: scored(folder, n, FEW)),
    "search": Work("training images, for 64 images", lambda folder, n: scored(folder, FEW, n)),
    "report": Work("images of each of two mitigations", reported),
    "index": Work("training images", indexed),
    "plan": Work("prompts, of which a batch is made", planned),
    "plan_2": Work("the same, two processes", lambda folder, n: planned(folder, n, 2), 2),
    "merge": Work("images, in parts of 64", merged),
}
