"""Guidance on an interval, and by a list of (timestep, scale)."""

import pytest
import torch

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.guidance.interval import GuidanceInterval
from callbacks.mitigations.guidance.schedule import GuidanceSchedule
from callbacks.mitigations.static_transition import StaticTransition
from tests.callbacks.mitigations.peer_runs import SCALE, STEPS, run

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_whole_range_is_ordinary_guidance(pipe, caplog: pytest.LogCaptureFixture) -> None:
    assert torch.equal(run(pipe, GuidanceInterval(0, 999)).latents, run(pipe).latents)
    assert "the guidance interval has no effect" in caplog.text


def test_outside_of_the_interval_the_conditional_prediction_is_alone(pipe) -> None:
    result = run(pipe, GuidanceInterval(301, 701))
    assert result.guidance_scale[0].tolist() == [1, 1] + [SCALE] * 5 + [1] * 3
    assert result.nfe.tolist() == [STEPS + 5] * 3
    with pytest.raises(ValueError, match="would never be given"):
        run(pipe, GuidanceInterval(902, 999))
    with pytest.raises(ValueError, match="exchange them"):
        GuidanceInterval(700, 300)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("rule, later", [
    (GuidanceInterval(301, 801), [SCALE] * 2 + [1] * 3),
    (GuidanceSchedule([(901, 2), (301, 4)]), [2] + [4] * 4),
])  # fmt: skip
def test_samples_that_wait_for_a_transition_go_on_waiting(
    pipe, rule: Mitigation, later: list[float], order: int
) -> None:
    result = run(pipe, *[StaticTransition(500, -1.0), rule][::order])
    assert result.guidance_scale[0].tolist() == [-1.0] * 5 + later


def test_a_list_of_two_points_is_a_static_transition(pipe) -> None:
    scheduled = run(pipe, GuidanceSchedule([(650, SCALE), (999, -2)]))
    assert torch.equal(scheduled.latents, run(pipe, StaticTransition(650, -2)).latents)


def test_steps_and_lines_between_the_points(pipe) -> None:
    steps = run(pipe, GuidanceSchedule([(701, 3), (301, 0)]))
    assert steps.guidance_scale[0].tolist() == [SCALE] * 2 + [3] * 4 + [0] * 4
    assert steps.nfe.tolist() == [2 * 6 + 4] * 3
    lines = run(pipe, GuidanceSchedule([(801, 8), (401, 0)], linear=True))
    assert lines.guidance_scale[0].tolist() == [8, 8, 6, 4, 2, 0, 0, 0, 0, 0]


def test_points_that_say_nothing_are_refused(pipe) -> None:
    for points in ([], [(500, 1), (500, 2)]):
        with pytest.raises(ValueError, match="pairs, each timestep once"):
            GuidanceSchedule(points)
    with pytest.raises(ValueError, match="would do nothing"):
        run(pipe, GuidanceSchedule([(999, SCALE)]))
    assert GuidanceSchedule([(0, 15), (999, 0)]).identity()["init_args"]["points"] == [[999, 0], [0, 15]]
