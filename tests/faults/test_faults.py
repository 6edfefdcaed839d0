"""Some rows of `python -m tests.faults`, once each."""

from pathlib import Path

import pytest

from tests.faults.__main__ import try_out
from tests.faults.cases import World
from tests.faults.disks import can_mount
from tests.faults.equal import differences
from tests.faults.rows import FAULTS

needs_mount = pytest.mark.skipif(
    not can_mount(), reason="a small disk is mounted: as root, or in a namespace"
)
# they share an uninterrupted run
SHORT = ("kill predict", pytest.param("disk rows of a batch", marks=needs_mount))


@pytest.fixture(scope="module")
def small_world(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", SHORT)
def test_a_fault_is_a_line_and_the_same_command_ends_equal(name: str, small_world: World) -> None:
    [fault] = [fault for fault in FAULTS if fault.name == name]
    row, right = try_out(fault, small_world, seed=0, repeats=1)
    assert right and "skipped:" not in row, row


def test_what_equal_means(tmp_path: Path) -> None:
    """Times are left out, numbers are not; a file more or less is a difference."""
    for name, seconds, loss in (("a", 1, 2.0), ("b", 3, 2.0), ("c", 1, 2.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(f"loss,seconds\n{loss},{seconds}\n")
        (tmp_path / name / "summary.json").write_text(f'{{"seconds": {seconds}, "nfe": [{loss}]}}')
    assert differences(tmp_path / "b", tmp_path / "a") == []
    (tmp_path / "c/more.png").touch()
    assert differences(tmp_path / "c", tmp_path / "a") == [
        "more.png is there", "metrics.csv differs", "summary.json differs",
    ]  # fmt: skip
