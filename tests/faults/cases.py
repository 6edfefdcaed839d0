"""Commands on tiny random models, each with a folder of its own for what it reads and writes."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.conftest import CAPTIONS, random_pipeline, save_clip, save_shard
from tests.data.image_files import write_shard
from tests.faults import inside
from tests.faults.equal import differences
from tests.processes import Command, until
from tests.train.fits import full, short, write_folder

TWO = {"data__batch_size": 2, "trainer__devices": 2, "trainer__strategy": "ddp"}


def predict(folder: Path, *more: str) -> list[str]:
    return [
        "predict", "--model.pipeline", f"{folder}/model", "--model.num_inference_steps", "6", "--prompts",
        f"{folder}/prompts.jsonl", "--samples_per_prompt", "2", "--batch_size", "2", "--mitigation", "stp",
        "--trainer.accelerator", "cpu", "--out", f"{folder}/out", *more,
    ]  # fmt: skip


def measured(folder: Path) -> list[str]:
    return ["--training", f"{folder}/images.tar", "--clip", f"{folder}/clip", "--cache", f"{folder}/cache"]


def score(folder: Path) -> list[str]:
    return ["score", "--runs", f"{folder}/out", *measured(folder), "--out", f"{folder}/out/table.parquet"]


def compare(folder: Path) -> list[str]:
    return [
        "compare", "--model.pipeline", f"{folder}/model", "--model.num_inference_steps", "6", "--prompts",
        f"{folder}/prompts.jsonl", "--batch_size", "4", "--mitigations", "none,stp", *measured(folder),
        "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--out", f"{folder}/out",
    ]  # fmt: skip


def stream(folder: Path) -> list[str]:
    settings = {
        "data__sources": [f"{folder}/shards"], "data__cache": None, "data__workers": 0, "model__lr": 1e-3,
        "trainer__max_steps": 6, "checkpoint_every": 2, "monitor__every_n_steps": 3, "monitor__count": 1,
    }  # fmt: skip
    return ["stream", *short(folder, folder / "out", **settings)[1:]]


def fit(folder: Path, **settings) -> list[str]:
    fewer = {"trainer__max_steps": 6, "monitor__every_n_steps": 3, "monitor__count": 1}
    return full(folder, folder / "out", **(fewer | settings))


def remote(folder: Path) -> list[str]:
    return fit(folder, data__sources=[f"file://{folder}/images.tar"])


@dataclass(frozen=True)
class Case:
    """A command: its program, arguments by the folder, ranks, and the case whose run it goes on with."""

    program: str
    args: Callable[[Path], list[str]]
    ranks: int = 1
    begun: str | None = None


CASES = {
    "fit": Case("train", fit),
    "fit, 2 ranks": Case("train", partial(fit, **TWO), 2),
    "fit, no cache": Case("train", partial(fit, data__cache="null")),
    "fit, file://": Case("train", remote),
    "stream": Case("train", stream),
    "predict": Case("infer", predict),
    "predict, 2 ranks": Case("infer", lambda folder: predict(folder, "--trainer.devices", "2"), 2),
    "score": Case("infer", score, begun="predict"),
    "compare": Case("infer", compare),
}


class World:
    """What the commands read, and the uninterrupted run of each, made when it is first asked for.

    All runs lie in one place in turn, as their files name it.
    """

    def __init__(self, folder: Path):
        self.folder, self.inputs, self.seconds = folder, folder / "inputs", dict[str, float]()
        random_pipeline().save_pretrained(self.inputs / "model")
        save_clip(self.inputs / "clip")
        save_shard(self.inputs / "images.tar")
        write_folder(self.inputs / "ordinary", {f"o{number}": f"ordinary {number}" for number in range(5)})
        (self.inputs / "shards").mkdir()
        for number, ids in enumerate(("abcd", "efgh", "ijkl")):
            write_shard(self.inputs / f"shards/{number}.tar", ids)
        prompts = [json.dumps({"id": f"s{n}", "text": text}) for n, text in enumerate(CAPTIONS[:4])]
        (self.inputs / "prompts.jsonl").write_text("\n".join(prompts))
        Command("infer", ["--help"]).exit_codes()  # what all are forked from has imported everything now

    def whole(self, name: str) -> Path:
        """Run folder of the uninterrupted run; `seconds[name]` is how long it took."""
        folder = self.folder / "whole" / name.replace(" ", "_")
        if name not in self.seconds:
            run = Run(self, name)
            began = time.monotonic()
            codes, errors = run.ended(run.start())
            assert not any(codes), errors
            self.seconds[name] = time.monotonic() - began
            folder.parent.mkdir(exist_ok=True)
            run.out.rename(folder)
        return folder


class Run:
    """One try: a command in a new folder, started as often as needed."""

    def __init__(self, world: World, name: str):
        self.world, self.name, self.case = world, name, CASES[name]
        begun = self.case.begun and world.whole(self.case.begun)
        self.folder = world.folder / "run"
        self.out = self.folder / "out"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(world.inputs, self.folder)
        (self.folder / "cache").mkdir()
        if begun:
            shutil.copytree(begun, self.out)

    def start(self, prepare: Callable[[], None] | None = None, *more: str) -> Command:
        """The command; `prepare` in each process before it."""
        begun = partial(inside.begin, str(self.folder / "user_cache"), prepare)
        return Command(self.case.program, [*self.case.args(self.folder), *more], self.case.ranks, begun)

    def ended(self, command: Command, patience: float = 20.0) -> tuple[list[int | None], str]:
        """Exit codes and errors. Ranks that outlive one that failed by so many seconds are killed, as
        torchrun and srun do."""
        until(lambda: any(command.codes()) or None not in command.codes(), 300, command.errors)
        deadline = time.monotonic() + patience
        for process in command.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        command.kill()
        return command.exit_codes(), command.errors()

    def different(self) -> list[str]:
        """What differs from the uninterrupted run, in words."""
        return differences(self.out, self.world.whole(self.name))
