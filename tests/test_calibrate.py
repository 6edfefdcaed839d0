"""The gate: what it is measured on, the rate it keeps, and the preset that it is written into."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from infer.__main__ import load_mitigation, main
from infer.calibrate import first_differences, gate_threshold
from infer.images import make_images
from infer.rules import Request
from infer.schedulers import make_scheduler
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


def test_it_writes_a_preset(tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Which --mitigation takes; a memorized prompt among the ordinary ones is left out."""
    (tmp_path / "ordinary.txt").write_text("\n".join(CAPTIONS[2:] + ["RED square"]))
    (tmp_path / "memorized.txt").write_text("\n".join(CAPTIONS[:2]))
    out = tmp_path / "gated.yaml"
    arguments = [
        "calibrate", "--pipeline", str(tiny_pipeline), "--ordinary", str(tmp_path / "ordinary.txt"),
        "--memorized", str(tmp_path / "memorized.txt"), "--mitigation", "og_dtp", "--out", str(out),
        "--false_positive_rate", "0.25", "--num_inference_steps", "6", "--samples_per_prompt", "2",
        "--device", "cpu",
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "ordinary_images: 12" in printed and "memorized_images: 4" in printed and "auc: " in printed
    preset, rule = yaml.safe_load(out.read_text()), load_mitigation(str(out))
    assert rule.gate == preset["init_args"]["gate"] > 0 and rule.guidance_before == -7.5
    assert out.read_text().startswith(f"# python -m infer predict --mitigation {out}\n")
    predict = ["predict", "--model.pipeline", str(tiny_pipeline), "--model.num_inference_steps", "6",
               "--data.prompts", str(tmp_path / "memorized.txt"), "--out", str(tmp_path / "run")]  # fmt: skip
    assert main([*predict, "--mitigation", str(out)]) == 0
    assert main([*arguments[:8], "none", *arguments[9:]]) == 1
    assert "NoMitigation, which has no gate" in capsys.readouterr().err
