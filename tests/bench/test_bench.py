"""The bench: its sides do the same work, or what their names say, and the table is of ratios."""

from pathlib import Path

import pytest
import torch
from transformers import ResNetConfig

from tests.bench import scoring
from tests.bench.__main__ import main
from tests.bench.denoising import pipe_of
from tests.bench.rows import ROWS, Row, Seconds, Setting, Side, Timing, timed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def setting(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Of denoising in six steps, two of them above 500."""
    return Setting(tmp_path_factory.mktemp("bench"), str(tiny_pipeline), steps=6, images=40, vectors=300)


def rows_of(unet: torch.nn.Module, side: Side) -> int:
    """Rows that the UNet evaluates: those of its first layer."""
    rows: list[int] = []
    hook = unet.conv_in.register_forward_hook(lambda module, given, output: rows.append(len(output)))
    try:
        side()
    finally:
        hook.remove()
    return sum(rows)


@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("plain", 4 * 12, 4 * 12),
        ("mitigated", 4 * 12, 4 * 12),
        ("traces", 4 * 12, 4 * 12),
        ("stp_4", 4 * 10, 4 * 12),
        ("stp_1", 10, 12),
        ("og_stp", 4 * 12, 4 * 12),
        ("dtp", 4 * 12, 4 * 12),
        ("detour_base", 4 * 12, 4 * 12),
        ("limit_plain", 4 * 12, 4 * 12),
        ("limit_stp_16", 16 * 10, 16 * 10),
    ],
)
def test_the_sides_evaluate_what_their_names_say(name: str, ours: int, theirs: int, setting: Setting) -> None:
    """Of the model itself: the detour's base model is another one."""
    unet = pipe_of(setting).unet
    assert [rows_of(unet, side) for side in ROWS[name].make(setting)] == [ours, theirs]


def test_both_searches_find_the_same(setting: Setting) -> None:
    ours, theirs = (side() for side in ROWS["search"].make(setting))
    assert torch.equal(ours, theirs)


def test_both_readers_make_all_whole_batches(setting: Setting) -> None:
    assert [side() for side in ROWS["shards"].make(setting)] == [32, 32]


def test_both_make_as_many_latents_ready(setting: Setting) -> None:
    assert [side() for side in ROWS["latents"].make(setting)] == [20 * 6 * 16] * 2


def test_both_measure_all_images(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of another size, but as many images of each."""
    small = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    monkeypatch.setattr(scoring, "NETWORK", small)
    assert [side() for side in ROWS["score_images"].make(setting)] == [10, 10]


def test_the_table_is_of_ratios_in_each_round() -> None:
    """A side may bring its own seconds; the first calls warm up."""
    seconds = {"ours": iter([9, 1, 2, 6]), "theirs": iter([9, 2, 2, 2])}
    sides = tuple(lambda times=times: Seconds(next(times)) for times in seconds.values())
    timing = timed(Row("row", "ours", "theirs", lambda _: sides), Setting(Path(), ""), 3)
    assert timing == Timing(timing.row, [1, 2, 6], [2, 2, 2])
    assert timing.cells() == ["2.000", "2.000", "1.00", "0.50-3.00"]


def test_rows_are_chosen_by_name(tiny_pipeline: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--pipeline", str(tiny_pipeline), "--steps", "2", "--rounds", "1"]
    assert [timing.row.name for timing in main(["stp_1", "plain", *options])] == ["stp_1", "plain"]
    assert "STP(500), batch 1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["nope"])
    assert "no row 'nope'; there are" in capsys.readouterr().err
