"""Detours that cannot take effect: each is one clear error before an image is made."""

from pathlib import Path

import pytest

from callbacks.mitigations.detour import Detour
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.two_pass_transition import TwoPassTransition
from tests.callbacks.mitigations.detour_batches import SCALE, SWITCH, denoised
from tests.conftest import random_pipeline
from tests.infer.denoising.loops import requests
from tests.infer.models.model_files import edit, failure
from tests.infer.predict.runs import command, write_prompts
from tests.infer.predict.test_predict_refusals import refused

pytestmark = pytest.mark.usefixtures("one_thread")
OWN = ("--mitigation", "Detour", "--mitigation.transition", "StaticTransition")


@pytest.mark.parametrize("options, message", [
    ({"captions": "a.txt", "prompt": "sun"}, "one of captions, prompt, base_pipeline and without_lora"),
    ({"captions": "a.txt", "min_cosine": 0.9, "max_cosine": 0.8}, "0.9 and max_cosine 0.8 must rise"),
    ({"captions": "a.txt", "min_cosine": 0.995}, "0.995 and max_cosine 0.99 must rise"),
    ({"base_pipeline": "/nowhere/x"}, "no model folder"),
    ({"transition": TwoPassTransition()}, "static or dynamic"),
])  # fmt: skip
def test_what_a_detour_refuses(options: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Detour(**{"transition": StaticTransition()} | options)


def test_options_without_an_effect_are_said(pipe, caplog: pytest.LogCaptureFixture) -> None:
    """And a detour onto the prompt itself."""
    for options in ({"exclude": "a.txt"}, {"min_cosine": 0.5}, {"max_cosine": 0.8}):
        rule = Detour(StaticTransition(), **options, prompt="red square")
    rule.check_requests(pipe, requests(2))
    messages = [record.message for record in caplog.records]
    assert [message.partition(" has no effect")[0] for message in messages] == [
        *["the detour's exclude, min_cosine or max_cosine"] * 3, "the detour",
    ]  # fmt: skip
    assert "1 of 2 images have their prompt as alternative" in messages[3]


def test_missing_captions_are_refused_before_anything_is_drawn(tiny_shards: Path) -> None:
    """A file, or one shard of several."""
    rule = Detour(StaticTransition(), captions="/nowhere.txt")
    failure(
        FileNotFoundError, "the detour's captions: no prompts '/nowhere.txt'", rule.check, [901, 1], SCALE
    )
    there = str(tiny_shards)
    missing = str(tiny_shards.parent / "{00000..00001}.tar")
    Detour(StaticTransition(), captions=there, exclude=there).check([901, 401, 1], SCALE)
    for options in ({"captions": missing}, {"captions": there, "exclude": missing}):
        rule = Detour(StaticTransition(), **options)
        failure(FileNotFoundError, "no file matches .*00001.tar", rule.check, [901, 401, 1], SCALE)


def test_a_run_none_of_whose_prompts_has_an_alternative(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = {"text": "red square"}, {"text": "sun", "alternative_prompt": " "}
    none = write_prompts(tmp_path / "none.jsonl", *rows)
    error = refused(command(tiny_pipeline, tmp_path / "none", 4, "--prompts", none, *OWN), capsys)
    assert "no prompt has an alternative_prompt: give the prompt file that column" in error
    assert not (tmp_path / "none/images").exists()


def five_channels(folder: Path) -> None:
    unet = random_pipeline().unet
    type(unet).from_config(unet.config, in_channels=5, out_channels=5).save_pretrained(folder / "unet")


BASES = {
    "prediction_type is epsilon, the finetuned model's v_prediction": {"prediction_type": "epsilon"},
    r"noise schedule \(alphas_cumprod at timestep \d+\) is 0\.\d+, the finetuned model's 0\.\d+": {
        "beta_end": 0.02
    },
    r"alphas_cumprod at timestep \d+": {"rescale_betas_zero_snr": True},
    "number of timesteps is 500, the finetuned model's 1000": {"num_train_timesteps": 500},
}


@pytest.mark.parametrize("message, scheduler", BASES.items())
def test_a_base_model_with_another_schedule(pipe, tmp_path: Path, message: str, scheduler: dict) -> None:
    random_pipeline().save_pretrained(tmp_path)
    edit(tmp_path / "scheduler/scheduler_config.json", scheduler)
    refuse_base(pipe, tmp_path, message)


def refuse_base(pipe, folder: Path, message: str) -> None:
    """By the check of a run, and by a batch without one."""
    rule = Detour(StaticTransition(SWITCH), base_pipeline=str(folder))
    failure(ValueError, message, rule.check_requests, pipe, requests(1))
    failure(ValueError, "give the model that it was finetuned from", denoised, pipe, rule, requests(1))


def test_a_base_model_with_other_latents(pipe, tmp_path: Path) -> None:
    for folder in (tmp_path / "scale", tmp_path / "channels"):
        random_pipeline().save_pretrained(folder)
    edit(tmp_path / "scale/vae/config.json", {"scaling_factor": 0.13025})
    refuse_base(pipe, tmp_path / "scale", "VAE's scaling_factor is 0.13025, the finetuned model's 0.18215")
    five_channels(tmp_path / "channels")
    refuse_base(pipe, tmp_path / "channels", "UNet's in_channels is 5, the finetuned model's 4")


def test_a_base_model_that_does_not_fit_is_found_before_the_bar(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    random_pipeline("epsilon").save_pretrained(tmp_path / "base")
    options = ("--prompt", "sun", *OWN, "--mitigation.base_pipeline", str(tmp_path / "base"))
    error = refused(command(tiny_pipeline, tmp_path / "run", 4, *options), capsys)
    assert "prediction_type is epsilon" in error and not (tmp_path / "run/images").exists()
