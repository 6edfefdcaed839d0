"""What `python -m infer predict` is given (prompts, negatives, solvers, models), and runs that go wrong."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor

from data.captioned import load_captioned
from data.pipeline import load_pipeline
from data.prompts import text_id
from infer.__main__ import main
from infer.alignment import ClipScore
from infer.generate import PromptData
from infer.images import embed
from infer.score import TrainingSet, score, summarize
from infer.seeds import sample_seed
from infer.similarity import pixel_descriptor
from tests.conftest import CAPTIONS
from tests.lora_files import kohya_lora
from tests.single_file import write_single_file
from tests.test_predict import pixels, refused

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = "red square blue circle green leaf old map"  # the tokenizer takes 8 tokens, two of them its own


@pytest.fixture
def predict(tiny_pipeline: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the command with options; the run folder. A later `--model.pipeline` or `--out` wins."""

    def run(*options: str, steps: int = 4) -> Path:
        assert main(command(tiny_pipeline, tmp_path / "run", steps, *options)) == 0
        return Path(options[options.index("--out") + 1]) if "--out" in options else tmp_path / "run"

    return run


def command(pipeline: Path, out: Path, steps: int, *options: str) -> list[str]:
    return [
        "predict", "--model.pipeline", str(pipeline), "--model.num_inference_steps", str(steps), "--out",
        str(out), "--trainer.accelerator", "cpu", *options,
    ]  # fmt: skip


def rows_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "samples.parquet")


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def write_prompts(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps({"id": f"s{n}"} | row) + "\n" for n, row in enumerate(rows)))
    return str(path)


def stock(pipe: Any, row: Any, steps: int = 4, **options: Any) -> np.ndarray:
    """The image that stock diffusers makes of a row's prompt and seed."""
    generator = torch.Generator().manual_seed(int(row.seed))
    image = pipe(row.prompt, generator=generator, num_inference_steps=steps, **options).images[0]
    return np.array(image, int)


def assert_stock(folder: Path, pipe: Any, steps: int = 4, **options: Any) -> None:
    """Every image of the run is the stock pipeline's, but for rounding."""
    images = pixels(folder)
    for row in rows_of(folder).itertuples():
        difference = images[Path(row.image).name] - stock(pipe, row, steps, **options)
        assert np.abs(difference).max() <= 1, row.prompt


# Prompts on the command line

TEXTS = [
    "red square",
    'a "red" square, it\'s',
    "red, square",
    "[red, square]",
    "{red}: square",
    "café 日本 🚗",
    "null",
    "123",
    "1e3",
    "# red",
    "~",
    "red \\n square \\",
    "a = b",
    "stp",
]


def test_prompts_on_the_command_line(predict: Callable[..., Path], tiny_pipeline: Path) -> None:
    """Each is taken as it is, to the letter, in either form, in order; the images are those of the texts."""
    given = [f"--prompt={text}" if number % 2 else text for number, text in enumerate(TEXTS)]
    options = [x for text in given for x in ([text] if text.startswith("--prompt=") else ["--prompt", text])]
    out = predict(*options, "--data.samples_per_prompt", "2", steps=2)
    rows = rows_of(out)
    assert list(rows["prompt"]) == [text for text in TEXTS for _ in range(2)]
    assert list(rows["prompt_id"][::2]) == [text_id(text) for text in TEXTS]
    assert rows["seed"][3] == sample_seed(0, text_id(TEXTS[1]), 1)
    assert_stock(out, load_pipeline(str(tiny_pipeline)), 2)


@pytest.mark.parametrize("options", [["--prompt", "red square"], ["--prompt=red square"]])
def test_one_prompt(predict: Callable[..., Path], tmp_path: Path, options: list[str]) -> None:
    """It makes what a file with it makes."""
    out = predict(*options)
    assert list(rows_of(out)["prompt"]) == ["red square"]
    (tmp_path / "prompts.txt").write_text("red square\n")
    other = predict("--data.prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "file"))
    assert np.array_equal(*(next(iter(pixels(folder).values())) for folder in (out, other)))


def test_a_prompt_may_start_with_a_dash(predict: Callable[..., Path]) -> None:
    out = predict("--prompt=-5 red", "--prompt=--out", "--prompt=--prompt")
    assert list(rows_of(out)["prompt"]) == ["-5 red", "--out", "--prompt"]


def test_prompts_take_the_place_of_a_config_files(predict: Callable[..., Path], tmp_path: Path) -> None:
    """Where its prompt file is switched off."""
    (tmp_path / "mine.yaml").write_text("data: {prompts: nowhere.txt, batch_size: 3}\n")
    out = predict("--config", str(tmp_path / "mine.yaml"), "--data.prompts=null", "--prompt", "red square")
    assert list(rows_of(out)["prompt"]) == ["red square"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--data.prompts", "prompts.txt", "--prompt", "red square"], "give either a file of prompts"),
        ([], "give either a file of prompts (--data.prompts FILE) or prompts (--prompt TEXT)"),
        (["--prompt", ""], "an empty prompt"),
        (["--prompt="], "an empty prompt"),
        (["--prompt", " "], "an empty prompt"),
        (["--prompt", "red square", "--prompt"], "an empty prompt"),
    ],
)
def test_what_is_wrong_with_prompts_is_one_clear_error(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    error = refused(command(tiny_pipeline, tmp_path / "run", 4, *options), capsys)
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# Negative and alternative prompts


def test_each_row_has_its_own_negative_prompt(
    predict: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path
) -> None:
    """An empty one is the empty prompt; the run's stands in where there is none."""
    rows = [{"negative_prompt": "old map"}, {"negative_prompt": ""}, {}, {"negative_prompt": None}]
    rows = [{"text": CAPTIONS[number], **row} for number, row in enumerate(rows)]
    prompts = write_prompts(tmp_path / "prompts.jsonl", *rows)
    out = predict("--data.prompts", prompts, "--model.negative_prompt", "sun")
    made, images, pipe = rows_of(out), pixels(out), load_pipeline(str(tiny_pipeline))
    assert [text if isinstance(text, str) else None for text in made["negative_prompt"]] == [
        "old map", "", None, None,
    ]  # fmt: skip
    for row, negative in zip(made.itertuples(), ["old map", "", "sun", "sun"], strict=True):
        image = images[f"{row.prompt_id}-0.png"]
        assert np.abs(image - stock(pipe, row, negative_prompt=negative)).max() <= 1
        other = stock(pipe, row, negative_prompt="tea cup")
        assert np.abs(image - other).max() > 3


def test_alternative_prompts_reach_the_rule(predict: Callable[..., Path], tmp_path: Path) -> None:
    """And the table."""
    rows = [{"text": "red square", "alternative_prompt": "blue circle"}, {"text": "old map"}]
    prompts = write_prompts(tmp_path / "prompts.jsonl", *rows)
    requests = PromptData(prompts).requests
    assert [request.alternative_prompt for request in requests] == ["blue circle", None]
    transition = ("--mitigation.transition", "StaticTransition")
    detour = predict("--data.prompts", prompts, "--mitigation", "Detour", *transition)
    alternatives = rows_of(detour)["alternative_prompt"]
    assert alternatives[0] == "blue circle" and pd.isna(alternatives[1])
    assert summary_of(detour)["without_alternative"] == 1
    waiting = predict("--data.prompts", prompts, "--mitigation", "stp", "--out", str(tmp_path / "stp"))
    images, others = pixels(detour), pixels(waiting)
    assert np.abs(images["s0-0.png"] - others["s0-0.png"]).max() > 3
    assert np.abs(images["s1-0.png"] - others["s1-0.png"]).max() <= 1


# Solvers and models


def test_a_run_with_euler_steps(predict: Callable[..., Path], tiny_pipeline: Path) -> None:
    pipe = load_pipeline(str(tiny_pipeline))
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    out = predict("--prompt", "red square", "--prompt", "old map", "--model.scheduler", "euler")
    assert_stock(out, pipe)
    assert list(pd.read_parquet(out / "traces.parquet")["timestep"][:4]) == [751, 501, 251, 1]


def test_the_timestep_spacing_can_be_chosen(predict: Callable[..., Path], tiny_pipeline: Path) -> None:
    pipe = load_pipeline(str(tiny_pipeline))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    out = predict("--prompt", "red square", "--model.timestep_spacing", "trailing")
    assert_stock(out, pipe)
    assert list(pd.read_parquet(out / "traces.parquet")["timestep"]) == [999, 749, 499, 249]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["timestep_spacing"] == "trailing" and config["scheduler"] == "own"


def test_a_lora(predict: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path) -> None:
    """The images are those of the weights with half of it added."""
    pipe = load_pipeline(str(tiny_pipeline))
    added = kohya_lora(pipe, tmp_path / "style.safetensors", alpha=0.2)
    for key, change in added.items():
        part, name = key.split(".", 1)
        getattr(pipe, part).get_parameter(name).data += 0.5 * change
    lora = ["--model.lora", str(tmp_path / "style.safetensors"), "--model.lora_scale", "0.5"]
    out = predict("--prompt", "red square", *lora)
    assert_stock(out, pipe)
    plain = predict("--prompt", "red square", "--out", str(tmp_path / "plain"))
    image, other = (next(iter(pixels(folder).values())) for folder in (out, plain))
    assert np.abs(image - other).max() > 3
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["lora"] == lora[1] and config["lora_scale"] == 0.5 and config["lora_sha256"]


def test_a_single_file(predict: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(str(tiny_pipeline))
    path = write_single_file(pipe, tmp_path / "model.safetensors")
    model = ["--model.pipeline", str(path), "--model.single_file_config", str(tiny_pipeline)]
    out = predict("--prompt", "red square", *model, "--mitigation", "none")
    assert_stock(out, pipe)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["pipeline"] == str(path) and config["pipeline_sha256"]


# Prompts that are too long


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What we and those who embed the prompts log as a warning or worse, kept from the root logger or not."""
    embedders = ("diffusers", "transformers")
    for name in embedders:
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)

    def records() -> list[str]:
        return [
            record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
            and record.name.split(".")[0] in (*embedders, "infer", "data", "callbacks")
        ]  # fmt: skip

    return records


def test_prompts_that_are_too_long_are_counted_once(
    predict: Callable[..., Path], tmp_path: Path, told: Callable[[], list[str]]
) -> None:
    """One warning for the whole run, whatever its batches; a long prompt is its beginning."""
    rows = [{"text": "red square"}, {"text": LONG}, {"text": LONG + " sun"}]
    prompts = write_prompts(tmp_path / "prompts.jsonl", *rows)
    out = predict("--data.prompts", prompts, "--data.batch_size", "1", "--data.samples_per_prompt", "2")
    assert len(told()) == 1
    assert told()[0].startswith("2 of 3 prompts are longer than the 8 tokens") and LONG in told()[0]
    assert list(rows_of(out)["prompt"]) == [row["text"] for row in rows for _ in range(2)]
    rows = [{"text": "red square"}, {"text": LONG + " tea"}, {"text": LONG + " sun"}]
    other = predict(
        "--data.prompts", write_prompts(tmp_path / "other.jsonl", *rows), "--data.samples_per_prompt", "2",
        "--out", str(tmp_path / "other"),
    )  # fmt: skip
    assert np.abs(pixels(out)["s1-1.png"] - pixels(other)["s1-1.png"]).max() <= 1


def test_nothing_is_said_of_prompts_that_fit(
    predict: Callable[..., Path], told: Callable[[], list[str]]
) -> None:
    predict("--prompt", "red square", "--prompt", "old map")
    assert told() == []


# Runs that go wrong


@pytest.fixture
def poisoned(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prompt for which the UNet answers NaN from the third of four steps on."""
    embedding = embed(load_pipeline(str(tiny_pipeline)), [CAPTIONS[1]], torch.device("cpu"))[0]
    forward = UNet2DConditionModel.forward

    def failing(self: Any, sample: Tensor, t: Tensor, encoder_hidden_states: Tensor, **options: Any) -> Any:
        (output,) = forward(self, sample, t, encoder_hidden_states, **options)
        bad = torch.isclose(encoder_hidden_states, embedding, atol=1e-4).flatten(1).all(1)
        return (output.masked_fill(bad.view(-1, 1, 1, 1) & (t < 500), torch.nan),)

    monkeypatch.setattr(UNet2DConditionModel, "forward", failing)
    return CAPTIONS[1]


def captions(tmp_path: Path) -> str:
    return write_prompts(tmp_path / "prompts.jsonl", *({"text": text} for text in CAPTIONS[:4]))


@pytest.mark.parametrize("mitigation", ["none", "stp", "DynamicTransition"])
def test_one_that_fails_leaves_the_others_alone(
    predict: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    told: Callable[[], list[str]],
    request: pytest.FixtureRequest,
    mitigation: str,
) -> None:
    """Its image is black and its row says where; a warning, the summary and the last line tell."""
    options = ["--data.prompts", captions(tmp_path), "--mitigation", mitigation, "--data.batch_size", "3"]
    whole = predict(*options, "--out", str(tmp_path / "whole"))
    assert rows_of(whole)["failed_step"].isna().all() and summary_of(whole)["failed"] == 0
    assert told() == [] and "FAILED" not in capsys.readouterr().out
    request.getfixturevalue("poisoned")
    out = predict(*options)
    rows, images, before = rows_of(out), pixels(out), pixels(whole)
    assert rows["failed_step"][1] == 2 and rows["failed_step"].isna().tolist() == [True, False, True, True]
    assert set(images) == {f"s{n}-0.png" for n in range(4)}
    assert images["s1-0.png"].shape == (16, 16, 3) and not images["s1-0.png"].any()
    assert all(np.array_equal(images[name], before[name]) for name in images if name != "s1-0.png")
    assert told() == ["s1, sample 0: latents are not finite after step 2 (t = 251): its image is black"]
    assert summary_of(out)["failed"] == 1 and summary_of(out)["images"] == 4
    assert "; 1 FAILED (latents not finite): black images" in capsys.readouterr().out


def test_failures_are_left_out_of_the_scores(
    predict: Callable[..., Path], poisoned: str, tmp_path: Path, tiny_shards: Path, tiny_clip: Path
) -> None:
    """Not a number in the row, and means and percentiles of the others."""
    out = predict("--data.prompts", captions(tmp_path))
    training = TrainingSet.embed(load_captioned(str(tiny_shards)), 16, {"similarity": pixel_descriptor})
    rows = score(out, training, ClipScore(str(tiny_clip)))
    assert rows["prompt"][1] == poisoned
    for name in ("similarity_own", "similarity_top", "top_train_id", "clip_score"):
        assert rows[name].isna().tolist() == [False, True, False, False]
    pd.testing.assert_frame_equal(rows, rows_of(out))
    summary, others = summarize("none", rows), summarize("none", rows.drop(1))
    assert summary.pop("failed") == 1 and others.pop("failed") == 0
    assert summary.pop("images") == 4 and others.pop("images") == 3
    scores = {name: value for name, value in summary.items() if "second" not in name}
    assert scores == pytest.approx({name: others[name] for name in scores}, nan_ok=True)


def test_compare_leaves_failures_out(
    tiny_pipeline: Path, poisoned: str, tmp_path: Path, tiny_shards: Path, tiny_clip: Path
) -> None:
    """Of its table."""
    asked = [
        "compare", "--pipeline", str(tiny_pipeline), "--prompts", captions(tmp_path), "--training",
        str(tiny_shards), "--clip", str(tiny_clip), "--num_inference_steps", "4", "--mitigations", "none",
        "--accelerator", "cpu", "--devices", "1", "--out", str(tmp_path / "compare"),
    ]  # fmt: skip
    assert main(asked) == 0
    table = pd.read_parquet(tmp_path / "compare/comparison.parquet").iloc[0]
    rows = rows_of(tmp_path / "compare/none").drop(1)
    assert table["images"] == 4 and table["failed"] == 1
    for name in ("similarity_own", "similarity_top", "clip_score"):
        assert rows[name].notna().all() and table[f"{name}_mean"] == pytest.approx(rows[name].mean())


def test_a_mitigation_that_never_fires_says_so(
    predict: Callable[..., Path], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    never = ["--mitigation", "DynamicTransition", "--mitigation.prominence", "0.99"]
    out = predict("--data.prompts", captions(tmp_path), *never, steps=6)
    summary = summary_of(out)
    assert (summary["fired"], summary["never_fired"], summary["transition_timestep_median"]) == (0, 4, None)
    assert "; the transition came for 0, and NEVER for 4: they kept" in capsys.readouterr().out
    assert rows_of(out)["transition_timestep"].isna().all()
    assert set(pd.read_parquet(out / "traces.parquet")["guidance_scale"]) == {0}


def test_some_fire_and_some_never_do(
    predict: Callable[..., Path], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """Both are counted."""
    rule = ["--mitigation", "DynamicTransition", "--mitigation.watch", "model_output"]
    rule += ["--mitigation.prominence", "0.05"]
    out = predict("--data.prompts", captions(tmp_path), *rule, "--data.samples_per_prompt", "4", steps=8)
    fired = int(rows_of(out)["transition_timestep"].notna().sum())
    assert 0 < fired < 16
    summary = summary_of(out)
    assert (summary["fired"], summary["never_fired"]) == (fired, 16 - fired)
    printed = capsys.readouterr().out
    assert f"the transition came for {fired}, median t = " in printed and f"NEVER for {16 - fired}" in printed


def test_a_run_folder_of_another_preset_is_refused(
    predict: Callable[..., Path], tiny_pipeline: Path, capsys: pytest.CaptureFixture
) -> None:
    """What is different is named, and nothing is touched."""
    out = predict("--prompt", "red square", "--mitigation", "stp")
    before = shutil.copytree(out, out.with_name("before"))
    for other, named in (("og_stp", "'guidance_before': -2.0"), ("dtp", "dynamic_transition")):
        asked = command(tiny_pipeline, out, 4, "--prompt", "red square", "--mitigation", other)
        error = refused(asked, capsys)
        assert f"mitigation: 'stp' -> '{other}'" in error and named in error and error.count("\n") == 1
    files = [path.relative_to(before) for path in before.rglob("*") if path.is_file()]
    assert all((out / path).read_bytes() == (before / path).read_bytes() for path in files)


@pytest.mark.parametrize("before", [-7.5, 0.0])
def test_two_passes_cost_both(predict: Callable[..., Path], tmp_path: Path, before: float) -> None:
    """The first at one scale throughout, the second at it until the transition: traces hold the second."""
    options = ["--mitigation", "og_two_pass", f"--mitigation.guidance_before={before}"]
    out = predict("--data.prompts", captions(tmp_path), *options, steps=8)
    traces = pd.read_parquet(out / "traces.parquet")
    waiting = 1 if before == 0 else 2
    for row in rows_of(out).itertuples():
        trace = traces[traces["prompt_id"] == row.prompt_id]
        first = list(trace["timestep"]).index(row.transition_timestep)
        assert list(trace["guidance_scale"]) == [before] * first + [7.5] * (8 - first)
        assert row.nfe == 8 * waiting + first * waiting + 2 * (8 - first)
    assert summary_of(out)["nfe_mean"] == rows_of(out)["nfe"].mean()
    assert summary_of(out)["watched"] == "latents" and summary_of(out)["never_fired"] == 0


def test_a_preset_is_itself_whatever_the_config_holds(predict: Callable[..., Path], tmp_path: Path) -> None:
    """No option of a mitigation of the same class in --config stays."""
    config = tmp_path / "config.yaml"
    config.write_text("mitigation: {class_path: DynamicTransition, init_args: {smoothing: 3, gate: 0.5}}\n")
    out = predict("--config", str(config), "--prompt", "red square", "--mitigation", "dtp")
    settings = yaml.safe_load((out / "config.yaml").read_text())["mitigations"][0]["init_args"]
    assert settings["smoothing"] == 1 and settings["gate"] is None
