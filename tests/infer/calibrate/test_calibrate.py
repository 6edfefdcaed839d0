"""A gate and a static transition: what they are measured on, and the presets that they are written into."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from callbacks.mitigations.presets import load_mitigation
from data.prompts import text_id
from infer.__main__ import main
from infer.calibrate.calibration import fall_timestep, first_differences, gate_threshold
from infer.denoising.curves import Watch, watched_curves
from infer.denoising.noise import sample_seed
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from infer.denoising.schedulers import make_scheduler
from infer.models.pipeline import load_pipeline
from tests.conftest import CAPTIONS, random_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.mark.parametrize("scheduler", ["ddim", "dpm", "euler", "pndm"])
def test_it_measures_what_the_first_step_of_a_prediction_will_see(scheduler: str) -> None:
    """The first difference in the trace of an ordinary run of the same noise, in uneven batches."""
    pipe = random_pipeline()
    pipe.unet.eval(), pipe.text_encoder.eval()
    pipe.scheduler = make_scheduler(pipe.scheduler, scheduler)
    requests = [Request(f"s{n}", 0, CAPTIONS[n], 1000 + n, ["", "old"][n % 2]) for n in range(5)]
    found = first_differences(pipe, requests, 16, 10, CPU, batch_size=2)
    _, made = make_images(pipe, CPU, requests, 16, 7.5, 10)
    assert torch.allclose(found, made.difference_rms[:, 0], rtol=1e-4) and found.std() > 0


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
def test_the_gate_keeps_its_rate(rate: float) -> None:
    """At most that share of ordinary prompts reaches it, and one more would pass a gate any lower."""
    ordinary = torch.tensor(np.random.default_rng(0).gamma(2.0, 1.0, 1000))
    gate = gate_threshold(ordinary, rate)
    reaching = (ordinary >= gate).sum().item()
    assert reaching == round(1000 * rate) and gate in ordinary.tolist()


@pytest.mark.parametrize("count, rate, allowed", [(21, 0.05, 1), (1591, 0.05, 79), (39, 0.1, 3)])
def test_a_rate_between_two_counts_is_not_exceeded(count: int, rate: float, allowed: int) -> None:
    ordinary = torch.randperm(count, generator=torch.Generator().manual_seed(0)).double()
    assert (ordinary >= gate_threshold(ordinary, rate)).sum() == allowed


@pytest.mark.parametrize(
    "count, rate, message",
    [(100, 0.0, "must be in"), (100, 1.0, "must be in"), (19, 0.05, "at least 20 are needed")],
)
def test_a_rate_that_cannot_be_kept_is_refused(count: int, rate: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate_threshold(torch.rand(count), rate)


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
def arguments(tiny_pipeline: Path, tmp_path: Path) -> list[str]:
    """A memorized prompt stands among the ordinary ones."""
    (tmp_path / "ordinary.txt").write_text("\n".join(CAPTIONS[2:] + ["RED square"]))
    (tmp_path / "memorized.txt").write_text("\n".join(CAPTIONS[:2]))
    return [
        "calibrate", "--model.pipeline", str(tiny_pipeline), "--memorized", str(tmp_path / "memorized.txt"),
        "--model.num_inference_steps", "6", "--samples_per_prompt", "2", "--device", "cpu", "--out",
        str(tmp_path / "made.yaml"),
    ]  # fmt: skip


def gate_of(tmp_path: Path) -> list[str]:
    return ["--ordinary", str(tmp_path / "ordinary.txt"), "--false_positive_rate", "0.25"]


def test_it_writes_a_gate(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Into a preset that --mitigation takes, for the schedule that it was found on; with a picture."""
    assert main([*arguments, "--mitigation", "og_dtp", *gate_of(tmp_path)]) == 0
    printed, out = capsys.readouterr().out, tmp_path / "made.yaml"
    assert "ordinary_images: 12" in printed and "memorized_images: 4" in printed and "auc: " in printed
    preset, rule = yaml.safe_load(out.read_text()), load_mitigation(str(out))
    assert rule.gate == preset["init_args"]["gate"] > 0 and rule.guidance_before == -7.5
    assert rule.gate_timestep == 831  # 6 steps: 831, 665 ...
    words = drawn(out.with_suffix(".svg"))
    assert "gate 0." in words and "static transition" not in words
    command = shlex.split(out.read_text().splitlines()[0])[4:]
    assert command[0] == "predict" and main(command) == 0  # the command that the file names
    steps = command.index("--model.num_inference_steps") + 1
    assert main([*command[:steps], "5", *command[steps + 1 :], "--out", str(tmp_path / "other")]) == 1
    assert "the gate is for schedules that start at timestep 831" in capsys.readouterr().err


def drawn(svg: Path) -> str:
    """Its words, which stand as comments beside the outlines of their letters."""
    return svg.read_text()


@pytest.mark.parametrize("gated", [False, True])
def test_it_writes_a_static_transition(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, gated: bool
) -> None:
    """Where the mean curve of the memorized prompts without guidance has fallen, and a gate if asked."""
    pipe = random_pipeline()
    torch.nn.init.normal_(pipe.unet.conv_out.weight, std=0.3)  # so that guidance matters
    pipe.save_pretrained(tmp_path / "model")
    arguments[arguments.index("--model.pipeline") + 1] = str(tmp_path / "model")
    options = ["--mitigation", "og_stp", "--fall", "0.4", *(gate_of(tmp_path) if gated else [])]
    assert main([*arguments, *options]) == 0
    rule = load_mitigation(str(tmp_path / "made.yaml"))
    assert rule.guidance_before == -2.0 and (rule.gate is not None) == gated
    pipe = load_pipeline(str(tmp_path / "model"))
    texts = CAPTIONS[:2]
    requests = [Request(text_id(t), n, t, sample_seed(0, text_id(t), n)) for t in texts for n in range(2)]
    watch = Watch()
    make_images(pipe, CPU, requests, 16, 0.0, 6, rules=[watch])
    mean = watch.curves()["model_output"].mean(0)
    top = int(mean.argmax())
    level = mean[top] - 0.4 * (mean[top] - mean[-1])
    timesteps = pipe.scheduler.timesteps.tolist()
    assert rule.timestep == next(t for t, d in zip(timesteps[top:], mean[top:], strict=True) if d <= level)
    assert f"timestep: {rule.timestep:g}" in capsys.readouterr().out
    assert (tmp_path / "made.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    "change, message",
    [
        (["--mitigation", "none"], "nothing can be calibrated in 'none'"),
        (["--mitigation", "dtp"], "give --ordinary, for its gate"),
        (["--mitigation", "og_two_pass", "--ordinary", "x.txt"], "has no gate: leave --ordinary out"),
        (["--mitigation", "stp", "--memorized", "null"], "give --memorized or --run"),
        (
            ["--mitigation", "stp", "--false_positive_rate", "0.1"],
            "false_positive_rate does nothing for 'stp'",
        ),
        (["--mitigation", "dtp", "--ordinary", "x.txt", "--fall", "0.4"], "fall does nothing for 'dtp' here"),
        (
            ["--mitigation", "dtp", "--ordinary", "x.txt", "--watch", "epsilon"],
            "watch does nothing for 'dtp'",
        ),
        (["--mitigation", "stp", "--device", "cuda:77"], "device 'cuda:77' is not here"),
        (["--mitigation", "stp", "--out", "made.txt"], "a .yaml file, not 'made.txt'"),
        (["--mitigation", "stp", "--model.lora_scale", "2"], "does nothing without a LoRA"),
        (
            ["--mitigation", "stp", "--model.resolution", "15"],
            "must be a multiple of 2 pixels, not 15",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture, change: list[str], message: str
) -> None:
    assert main([*arguments, *change]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_gate_needs_no_memorized_prompts(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--mitigation", "dtp", "--memorized", "null", *gate_of(tmp_path)]) == 0
    assert "auc" not in (tmp_path / "made.yaml").read_text()
    assert load_mitigation(str(tmp_path / "made.yaml")).gate > 0


@pytest.mark.parametrize("options", [["--mitigation", "stp"], ["--mitigation", "dtp"]])
def test_a_model_that_gives_no_numbers_is_not_calibrated(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str]
) -> None:
    """Nothing is written."""
    pipe = random_pipeline()
    pipe.unet.conv_out.bias.data.fill_(torch.nan)
    pipe.save_pretrained(tmp_path / "model")
    arguments[arguments.index("--model.pipeline") + 1] = str(tmp_path / "model")
    given = gate_of(tmp_path) if "dtp" in options else []
    assert main([*arguments, *options, *given]) == 1
    assert "images have differences that are not finite" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "made.yaml").exists()


@pytest.mark.parametrize(
    "own, message",
    [
        (
            "timestep: 600, gate: 0.1, gate_timestep: 981",
            "the gate is for schedules that start at timestep 981",
        ),
    ],
)
def test_what_a_preset_held_before_must_still_fit(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, own: str, message: str
) -> None:
    """A gate for another schedule."""
    pipe = random_pipeline()
    torch.nn.init.normal_(pipe.unet.conv_out.weight, std=0.3)
    pipe.save_pretrained(tmp_path / "model")
    arguments[arguments.index("--model.pipeline") + 1] = str(tmp_path / "model")
    (tmp_path / "own.yaml").write_text(f"class_path: StaticTransition\ninit_args: {{{own}}}\n")
    assert main([*arguments, "--mitigation", str(tmp_path / "own.yaml"), "--fall", "0.4"]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "made.yaml").exists()


def test_at_zero_terminal_snr_the_gate_is_read_from_the_second_step() -> None:
    """At the first, t = 999, alpha is 0 and with it every difference of the noise predictions."""
    pipe = random_pipeline()
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **options)
    asked = [Request(f"s{n}", 0, CAPTIONS[n], n) for n in range(2)]
    measured = first_differences(pipe, asked, 16, 10, torch.device("cpu"))
    curves = watched_curves(pipe, asked, 16, 0.0, 10, torch.device("cpu"), 2)[1]["epsilon"]
    assert (curves[:, 0] == 0).all() and (curves[:, 1] > 0).all()
    assert measured.tolist() == pytest.approx(curves[:, 1].tolist(), rel=1e-4)
