# ruff: noqa: E501  (a row a line)
"""Run folders and comparisons that are cut, or another program's, and options."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from data.prompts import Prompt
from data.prompts.store import PromptStore
from infer.__main__ import main
from infer.denoising.requests import Requests
from infer.predict.claim import claim
from infer.predict.parts import finished
from infer.report.gallery import make_gallery
from infer.report.study import read_study
from infer.score.options import Scoring
from tests.bad_inputs import Bad, Files, Group
from tests.bad_inputs.images import png
from tests.bad_inputs.prompts import DEEP, NESTED
from tests.conftest import ROOT
from tests.data.image_files import write_folder
from tests.infer.report.folders import build, write_about
from train.run_folder.checkpoint_file import read_checkpoint
from train.run_folder.claim import read_settings

OUT = "comparison.json cannot be read, or lacks its title: run `python -m infer compare` again, which keeps the images"


# Comparisons


def changed(change: Callable[[Path], Any]) -> Files:
    """A comparison of two mitigations on one prompt, and what is done to it."""

    def make(folder: Path) -> None:
        build(folder, {"cat": "a cat"}, {"none": 0.9, "stp": 0.5}, samples=1)
        write_about(folder)
        change(folder)

    return make


def text(name: str, content: str | bytes) -> Files:
    return changed(lambda folder: write_folder(folder, {name: content}))


def without(name: str, *columns: str) -> Files:
    def change(folder: Path) -> None:
        pd.read_parquet(folder / name).drop(columns=list(columns)).to_parquet(folder / name)

    return changed(change)


def replaced(name: str, **columns: Any) -> Files:
    return changed(lambda folder: pd.read_parquet(folder / name).assign(**columns).to_parquet(folder / name))


SAMPLES = "none/samples.parquet"
COMPARISONS = Group("Comparisons", "python -m infer report {}", lambda folder: make_gallery(read_study(Path(folder))), [
    Bad("no comparison", {"a.txt": "a"}, ".", "error: . holds no comparison: run `python -m infer compare` first"),
    Bad("half of comparison.json", text("comparison.json", "{"), ".", f"error: {OUT}"),
    Bad("a list in comparison.json", text("comparison.json", "[]"), ".", f"error: {OUT}"),
    Bad("brackets without end", text("comparison.json", DEEP), ".", f"error: {OUT}"),
    Bad("half a table", text("comparison.parquet", b"PAR1"), ".", "error: comparison.parquet cannot be read (...): run `python -m infer compare` again, ..."),
    Bad("another's table", without("comparison.parquet", "mitigation"), ".", "error: comparison.parquet has no column 'mitigation', but ..."),
    Bad("half of a run's rows", text(SAMPLES, b"PAR1"), ".", "error: ...none/samples.parquet cannot be read (...): delete it, and predict makes again what it listed"),
    Bad("rows without prompts", without(SAMPLES, "prompt"), ".", "error: ...none/samples.parquet has no column 'prompt', but ..."),
    Bad("traces without steps", without("none/traces.parquet", "step"), ".", "error: ...none/traces.parquet has no column 'step', but ..."),
    Bad("an image outside", replaced(SAMPLES, image="../../secret.png"), ".", "error: '../../secret.png' points outside of none"),
    Bad("a training image outside", replaced(SAMPLES, prompt_id="../../secret"), ".", "error: '../../secret.png' points outside of training"),
    Bad("a run outside", replaced("comparison.parquet", mitigation=["none", "../stp"]), ".", "error: '../stp/samples.parquet' points outside of ."),
])  # fmt: skip


# Predict runs and training runs


def samples(config: str, image: str = "images/a.png", **others: Any) -> Files:
    """A predict run `run` of one row."""

    def make(folder: Path) -> None:
        (folder / "run").mkdir()
        (folder / "run/config.yaml").write_text(config)
        rows = {"prompt_id": ["a"], "sample": [0], "prompt": ["x"], "image": [image], "failed_step": [None]}
        pd.DataFrame(others or rows).to_parquet(folder / "run/samples.parquet")

    return make


def score(run: str) -> None:
    data = ROOT / "data"
    Scoring(
        runs=[run],
        training=[str(data / "emoji/shards/twemoji-00000.tar.gz")],
        clip=str(data / "scenes/judge"),
        device="cpu",
    ).resolution()


def resume(run: str) -> None:
    claim(Path(run), {"mitigations": []})
    finished(Path(run), Requests(PromptStore([Prompt("a", "x")]), 1, 0))


def bomb(folder: Path) -> None:
    samples(KNOWN)(folder)
    write_folder(folder, {"run/images/a.png": png(100_000, 100_000)})


KNOWN = "{mitigation: none, mitigations: [], pipeline: x}"
OTHER = "error: run holds something else than a predict run: ..."
SCORES = Group("Predict runs, scored", "python -m infer score --runs {}", score, [
    Bad("no run", {"run/a.txt": "a"}, "run", "error: 'run' is no finished predict run: it has no samples.parquet"),
    Bad("half of config.yaml", samples("[{"), "run", OTHER),
    Bad("a Python object in config.yaml", samples("!!python/object/apply:os.system [ls]"), "run", OTHER),
    Bad("a training run", samples("{trainer: {max_steps: 3}}"), "run", OTHER),
    Bad("another's rows", samples(KNOWN, a=[1]), "run", "error: run/samples.parquet has no column 'prompt_id', but ['a']: ..."),
    Bad("an image outside", samples(KNOWN, "../secret.png"), "run", "error: '../secret.png' points outside of run"),
    Bad("no image that can be read", bomb, "run", "error: no image of run can be read"),
])  # fmt: skip
RESUMED = Group("Predict runs, continued", "python -m infer predict --out {}", resume, [
    Bad("a training run", samples("{trainer: {max_steps: 3}}"), "run", OTHER),
    Bad("another's rows", samples("mitigations: []", a=[1]), "run", "error: run/samples.parquet has no column 'prompt_id', but ['a']: ..."),
    Bad("an image outside", samples("mitigations: []", "../secret.png"), "run", "error: '../secret.png' points outside of run"),
])  # fmt: skip


def checkpoint(content: Any) -> Files:
    return lambda folder: torch.save(content, folder / "last.ckpt")


class Program:
    """What runs where it is unpickled."""

    def __reduce__(self) -> tuple:
        return open, ("unpickled", "w")


CHECKPOINTS = Group("Checkpoints", "python -m train fit, with checkpoints/{}", lambda name: read_checkpoint(Path(name)), [
    Bad("nothing", {"last.ckpt": b""}, "last.ckpt", "error: last.ckpt is not a readable checkpoint (...): restore it, or delete it to start again"),
    Bad("a web page", {"last.ckpt": b"<html>"}, "last.ckpt", "error: last.ckpt is not a readable checkpoint (...): ..."),
    Bad("a program", checkpoint({"state_dict": Program()}), "last.ckpt", "error: last.ckpt is not a readable checkpoint (UnpicklingError): ..."),
    Bad("another's", checkpoint({"state_dict": {}}), "last.ckpt", "error: last.ckpt is not a checkpoint of this command (no callbacks, ...): ..."),
])  # fmt: skip
SETTINGS = Group("Settings of a training run", "python -m train fit, with {}", lambda name: read_settings(Path(name)), [
    Bad(what, {"config.yaml": content}, "config.yaml", "error: config.yaml holds no settings: restore it, or delete it if the run is the one that it began as")
    for what, content in (("nothing", ""), ("a list", "[]"), ("half a file", "[{"), ("brackets without end", NESTED), ("bytes", b"\xff\xfe\xfa"))
])  # fmt: skip


# Options


def option(given: str, line: str, files: dict[str, bytes | str] | None = None) -> Bad:
    """Of a command that has all that it needs besides."""
    return Bad("an option" if files is None else "a config", files or {}, given, f"error: {line}")


def command(name: str, *args: str) -> None:
    needed = {"predict": ["--model.pipeline", "x"], "calibrate": ["--mitigation", "stp", "--ordinary", "x"]}
    if code := main([name, *needed.get(name, []), "--out", "out", *args]):
        raise SystemExit(code)


LITERAL = "--model.dtype: Expected a Literal['float32', 'float16', ..."
OPTIONS = Group("Options", "python -m infer {}", command, [
    option("predict --model.num_inference_step 3", "--model.num_inference_step is no option: did you mean --model.num_inference_steps?"),
    option("predict --mitigaton=stp", "--mitigaton is no option: did you mean --mitigation?"),
    option("predict stp", "stp is no option: see python -m infer predict --help"),
    option("predict --model.resolution 0", "--model.resolution: Not of type PositiveInt: does not ..."),
    option("predict --model.guidance_scale nan", "--model.guidance_scale: Not of type FiniteFloat: ..."),
    option("predict --model.dtype half", LITERAL),
    option("predict --limit", "--limit: expected one argument"),
    option("predict --mitigation Detour", "--mitigation: the following arguments are required..."),
    option("predict --mitigation stp --mitigation.timestp 3", "--mitigation: Option 'timestp' ..."),
    option("predict --mitigation stp --mitigation.timestep null", "--mitigation: timestep: must not be null"),
    option("predict --mitigation x/stp.yaml", "no mitigation preset 'x/stp.yaml': ..."),
    option("predict --mitigation.transition spt", "no mitigation preset 'spt': did you mean stp? see configs/mitigation, ..."),
    option("predict --mitigation Detour --mitigation.transition none",
           "--mitigation.transition: Import path callbacks.mitigations.base.NoMitigation does not correspond ..."),
    option("compare --samples 3", "--samples is no option..."),
    option("compare --mitigations stp dtp", "dtp is no option: see python -m infer compare --help"),
    option("compare --seed many", "--seed: Expected a int..."),
    option("compare --sweep stp.timestep", "--sweep 'stp.timestep': give it as PRESET.OPTION=VALUE,VALUE"),
    option("calibrate --false_positive_rte=3", "--false_positive_rte is no option: did you mean ..."),
    option("basin --points many", "--points: Not of type NonNegativeFloat: ..."),
    option("predict --config c.yaml", "--model.pipelin is no option: did you mean --model.pipeline?", {"c.yaml": "model: {pipelin: x}"}),
    option("compare --config c.yaml", "--num_inference_step is no option: did you mean --model.num_inference_steps?", {"c.yaml": "num_inference_step: 3"}),
    option("compare --config c.yaml", "a config file is no YAML (line 2, column 1)", {"c.yaml": "class_path: [\n"}),
    option("compare --config c.yaml", "...", {"c.yaml": "!!python/object/apply:os.system [ls]"}),
    option("compare --config c.yaml", "...", {"c.yaml": NESTED}),
])  # fmt: skip
