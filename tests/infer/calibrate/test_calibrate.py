"""A gate and a static transition: what they are measured on, and the presets that hold them."""

import logging
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from callbacks.mitigations.presets import load_mitigation
from data.prompts import text_id
from infer.__main__ import main
from infer.calibrate.command import calibrate
from infer.calibrate.measure import fall_timestep, first_differences, reached_by
from infer.denoising.curves import Watch
from infer.denoising.noise import sample_seed
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from infer.denoising.schedulers import make_scheduler
from infer.models.pipeline import load_pipeline
from tests.conftest import CAPTIONS, random_pipeline
from tests.infer.training_runs import save_model

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.mark.parametrize("scheduler", ["ddim", "dpm", "pndm", "zero_snr"])
def test_first_differences_are_those_of_a_prediction(scheduler: str) -> None:
    """The first difference above 0 in the trace of a run of the same noise, in uneven batches.

    With zero terminal SNR that is the second: d_t is 0 at the first step, whatever the prompt.
    """
    pipe, index = random_pipeline(), int(scheduler == "zero_snr")
    if index:
        config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **config)
    else:
        pipe.scheduler = make_scheduler(pipe.scheduler, scheduler)
    pipe.unet.eval(), pipe.text_encoder.eval()
    requests = [Request(f"s{n}", 0, CAPTIONS[n], 1000 + n, ["", "old"][n % 2]) for n in range(5)]
    values = first_differences(pipe, CPU, requests, 2, 16, -2.0, 10)
    _, denoised = make_images(pipe, CPU, requests, 16, -2.0, 10)
    assert torch.allclose(values, denoised.difference_rms[:, index], rtol=1e-4) and values.std() > 0
    assert (denoised.difference_rms[:, :index] == 0).all()


@pytest.mark.parametrize("count, rate, allowed", [
    (1000, 0.01, 10), (1000, 0.5, 500), (21, 0.05, 1), (1591, 0.05, 79), (39, 0.1, 3)
])  # fmt: skip
def test_the_gate_keeps_its_rate(count: int, rate: float, allowed: int) -> None:
    """At most that share of ordinary prompts reaches it, and it is as low as that allows."""
    ordinary = np.random.default_rng(0).permutation(count).astype(float)
    gate = reached_by(ordinary, rate)
    assert (ordinary >= gate).sum() == allowed and gate in ordinary


def test_a_rate_that_cannot_be_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 20 are needed"):
        reached_by(np.arange(19.0), 0.05)


# In the paper's Fig. 4: mean difference of the model outputs of SD 2.1 on LAION-10k, read from the picture
FIG4 = {951: 41.5, 705: 33, 590: 26, 533: 22, 514: 19, 495: 11, 476: 8, 20: 2.3}


@pytest.mark.parametrize("share, expected", [(0.2, 705), (0.5, 514), (0.75, 495), (0.85, 476), (0.999, 20)])
def test_the_transition_is_where_the_curve_has_fallen(share: float, expected: float) -> None:
    """The paper's static transition, 500, is between a half and three quarters of the way."""
    assert fall_timestep([*FIG4], np.array([*FIG4.values()]), share) == expected


def test_the_fall_is_from_the_highest_value() -> None:
    """Fig. 2: it rises first; what comes before the top has not fallen."""
    curve = np.array([5.0, 8.9, 7.0, 2.6, 4.0, 2.0])
    assert fall_timestep([999, 860, 800, 780, 600, 20], curve, 0.5) == 780


@pytest.mark.parametrize("curve", [[1, 2, 3, 4], [2, 2, 2, 2], [4, 4, 3.5, 3.2]])
def test_without_a_fall_there_is_no_transition(curve: list[float]) -> None:
    with pytest.raises(ValueError, match="does not fall .* no static transition"):
        fall_timestep([900, 600, 300, 0], np.array(curve), 0.5)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A memorized prompt is among the ordinary ones."""
    (tmp_path / "ordinary.txt").write_text("\n".join(CAPTIONS[2:] + ["RED square"]))
    (tmp_path / "memorized.txt").write_text("\n".join(CAPTIONS[:2]))
    return [
        "--model.pipeline", str(save_model(tmp_path / "model")), "--memorized",
        str(tmp_path / "memorized.txt"), "--model.num_inference_steps", "6", "--samples_per_prompt", "2",
        "--device", "cpu", "--false_positive_rate", "0.25", "--out", str(tmp_path / "new.yaml"),
    ]  # fmt: skip


def gate_of(tmp_path: Path) -> list[str]:
    return ["--ordinary", str(tmp_path / "ordinary.txt")]


def test_it_writes_a_gate(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Into a preset that --mitigation takes, for the schedule of the calibration; with a figure."""
    calibrate([*arguments, "--mitigation", "og_dtp", *gate_of(tmp_path)], load_mitigation)
    printed, out = capsys.readouterr().out, tmp_path / "new.yaml"
    assert "ordinary_images: 12" in printed and "memorized_images: 4" in printed and "auc: " in printed
    preset, rule = yaml.safe_load(out.read_text()), load_mitigation(str(out))
    assert rule.gate == preset["init_args"]["gate"] > 0 and rule.guidance_before == -7.5
    assert rule.gate_timestep == 831  # 6 steps: 831, 665 ...
    svg = out.with_suffix(".svg").read_text()  # whose texts are comments
    assert "gate 0." in svg and "static transition" not in svg
    command = shlex.split(out.read_text().splitlines()[0])[4:]
    assert command[0] == "predict" and main(command) == 0  # the command that the file names
    steps = command.index("--model.num_inference_steps") + 1
    assert main([*command[:steps], "5", *command[steps + 1 :], "--out", str(tmp_path / "other")]) == 1
    assert "the gate is for schedules that start at timestep 831" in capsys.readouterr().err


def test_it_writes_a_static_transition_and_a_gate(arguments: list[str], tmp_path: Path) -> None:
    """Where the mean curve of the memorized prompts without guidance has fallen."""
    options = ["--mitigation", "og_stp", "--fall", "0.4", *gate_of(tmp_path)]
    calibrate([*arguments, *options], load_mitigation)
    rule = load_mitigation(str(tmp_path / "new.yaml"))
    pipe, texts, watch = load_pipeline(str(tmp_path / "model")), CAPTIONS[:2], Watch()
    requests = [Request(text_id(t), n, t, sample_seed(0, text_id(t), n)) for t in texts for n in range(2)]
    make_images(pipe, CPU, requests, 16, 0.0, 6, rules=[watch])
    mean = watch.curves()["model_output"].mean(0)
    top = int(mean.argmax())
    level = mean[top] - 0.4 * (mean[top] - mean[-1])
    after = zip(pipe.scheduler.timesteps.tolist()[top:], mean[top:], strict=True)
    assert rule.timestep == next(t for t, d in after if d <= level)
    assert rule.guidance_before == -2.0 and rule.gate is not None
    svg = (tmp_path / "new.svg").read_text()
    assert "static transition" in svg and "gate 0." in svg


def test_it_writes_the_threshold_of_the_first_guess(arguments: list[str], tmp_path: Path) -> None:
    """So that at most a quarter of the ordinary images begins again; the comparison's timestep stays."""
    calibrate([*arguments, "--mitigation", "first_guess", *gate_of(tmp_path)], load_mitigation)
    text, rule = (tmp_path / "new.yaml").read_text(), load_mitigation(str(tmp_path / "new.yaml"))
    pipe, texts = load_pipeline(str(tmp_path / "model")), CAPTIONS[2:]
    requests = [Request(text_id(t), n, t, sample_seed(0, text_id(t), n)) for t in texts for n in range(2)]
    _, denoised = make_images(pipe, CPU, requests, 16, 7.5, 6, rules=[rule])
    again = denoised.nfe > rule.guesses + 2 * 6
    assert again.sum() == 3 == (rule.cosine >= rule.threshold).sum() and len(requests) == 12
    assert "ordinary_above_the_threshold: 3" in text and "memorized_images: 4" in text and "auc: " in text
    assert rule.timestep == 700 and "threshold " in (tmp_path / "new.svg").read_text()


def test_a_gate_needs_no_memorized_prompts(
    arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An option of the static transition, which this mitigation does not have, is reported."""
    given = ["--mitigation", "dtp", "--memorized", "null", "--fall", "0.4", *gate_of(tmp_path)]
    with caplog.at_level(logging.WARNING):
        calibrate([*arguments, *given], load_mitigation)
    assert "auc" not in (tmp_path / "new.yaml").read_text()
    assert load_mitigation(str(tmp_path / "new.yaml")).gate > 0
    assert "--fall has no effect: no timestep is calibrated" in caplog.text


@pytest.mark.parametrize("change, message", [
    (["--mitigation", "none"], "nothing to calibrate in 'none'"),
    (["--mitigation", "dtp"], "give --ordinary, for the gate"),
    (["--mitigation", "first_guess"], "give --ordinary, for the threshold"),
    (["--mitigation", "stp", "--memorized", "null"], "give --memorized or --run"),
    (["--mitigation", "stp", "--false_positive_rate", "1"], "false_positive_rate"),
    (["--mitigation", "stp", "--out", "new.txt"], "'new.txt' is not a .yaml file"),
])  # fmt: skip
def test_what_cannot_be_calibrated_is_refused(arguments: list[str], change: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        calibrate([*arguments, *change], load_mitigation)


@pytest.mark.parametrize("name", ["stp", "dtp"])
def test_a_model_that_gives_no_numbers_is_not_calibrated(
    arguments: list[str], tmp_path: Path, name: str
) -> None:
    pipe = random_pipeline()
    pipe.unet.conv_out.bias.data.fill_(torch.nan)
    pipe.save_pretrained(tmp_path / "model")
    given = gate_of(tmp_path) if name == "dtp" else []
    with pytest.raises(ValueError, match="images have values that are not finite"):
        calibrate([*arguments, "--mitigation", name, *given], load_mitigation)
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize("own, scale, message", [
    ("timestep: 600, gate: 0.1, gate_timestep: 981", 7.5, "schedules that start at timestep 981"),
    ("timestep: 600, guidance_before: 3.0", 3.0, "guidance_before equals guidance_scale"),
])  # fmt: skip
def test_other_settings_of_the_preset_must_fit_the_model_options(
    arguments: list[str], tmp_path: Path, own: str, scale: float, message: str
) -> None:
    """A gate for another schedule; the guidance scale that the calibration is for."""
    (tmp_path / "own.yaml").write_text(f"class_path: StaticTransition\ninit_args: {{{own}}}\n")
    given = ["--mitigation", str(tmp_path / "own.yaml"), "--fall", "0.4", "--model.guidance_scale"]
    with pytest.raises(ValueError, match=message):
        calibrate([*arguments, *given, str(scale)], load_mitigation)
    assert not (tmp_path / "new.yaml").exists()
