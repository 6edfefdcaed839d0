"""Numbers as people say them, devices as the trainer counts them, and a clock that waits for the GPU."""

import pytest
import torch

from infer.plan.clock import now
from infer.plan.options import with_measure
from infer.plan.words import are_here, cost, device_count, duration, rounded


@pytest.mark.parametrize(
    "seconds, said",
    [(0, "0 s"), (0.4321, "0.43 s"), (59.4, "59 s"), (258, "4.3 min"), (11_520, "3.2 h"), (115_200, "32 h"),
     (216_000, "2.5 days"), (100 * 86400, "100 days")],
)  # fmt: skip
def test_a_duration_has_two_digits(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_cost_counts_every_device() -> None:
    """Two hours on eight devices at 2.5 each."""
    assert cost(7200, 8, 2.5) == "about 40 (16 device hours at 2.5)"
    assert [rounded(value) for value in (4321, 0.0996, 9.96)] == ["4,300", "0.1", "10"]


def test_devices_are_counted_as_the_trainer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    counts = {8: 8, "4": 4, "0,3": 2, "5,": 1, "auto": 2, -1: 2, "-1": 2}
    assert {given: device_count(given, "gpu") for given in counts} == counts
    assert device_count([1, 2, 3], "gpu") == 3 and device_count("auto", "cpu") == 1
    assert are_here(2, "gpu") and are_here(8, "cpu") and not are_here(3, "gpu") and not are_here(3, "auto")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert are_here(3, "auto") and not are_here(1, "gpu") and device_count("auto", "auto") == 1


def test_the_clock_is_read_when_the_gpu_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: calls.append(device.type))
    monkeypatch.setattr("infer.plan.clock.time.perf_counter", lambda: calls.append("read"))
    now(torch.device("cuda", 0)), now("cuda"), now(torch.device("cpu")), now()
    assert calls == ["cuda", "read"] * 2 + ["read"] * 2


def test_measure_alone_means_true() -> None:
    assert with_measure(["--measure"]) == ["--measure=true"]
    given = ["--measure", "--out", "x", "--measure", "false"]
    assert with_measure(given) == ["--measure=true", "--out", "x", "--measure", "false"]
