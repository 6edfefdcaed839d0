"""The page of a GPU: the same code on the CPU, with a tiny model."""

from pathlib import Path

import pytest

from tests.bench.gpu import __main__ as gpu
from tests.bench.gpu.flops import flops_of_step
from tests.bench.gpu.page import FAILED, Page
from tests.train.plan.test_plan import SD21

pytestmark = pytest.mark.usefixtures("one_thread")


def table_of(out: Path, *parts: str) -> list[list[str]]:
    """Cells of a tiny run's table, without its head; all checks are right."""
    assert gpu.main(["--tiny", "--out", str(out), *parts]) == 0, (out / "gpu.md").read_text()
    assert [path.name for path in out.iterdir()] == ["gpu.md"]  # the model and the fits are gone
    lines = (out / "gpu.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return table[2:]


def checks(table: list[list[str]]) -> list[str]:
    return [figure for _, figure, value, _ in table if value == "ok"]


@pytest.mark.slow
def test_compiled_code_gives_the_same(tmp_path: Path) -> None:
    assert checks(table_of(tmp_path, "compiled")) == ["compiled is as eager", "compiled in our loop, stp"]


@pytest.mark.slow
def test_every_part_has_its_figures(tmp_path: Path) -> None:
    table = table_of(tmp_path, "training", "sampling", "precision")
    assert list(dict.fromkeys(part for part, *_ in table)) == [*gpu.PARTS][:-1]
    figures = {figure: value for _, figure, value, _ in table}
    for speed in ["one device", "ddp", "sharded", "fp32", "diffusers", "none", "stp (500)", "dtp"]:
        assert float(figures[speed].removesuffix(" images/s")) > 0
    assert checks(table) == [
        "pin_memory", "ddp trains alike", "sharded trains alike", "bf16-mixed loss",
        "none gives diffusers' images", "bf16 is close to fp32",
    ]  # fmt: skip


def test_mitigations_evaluate_what_they_need(tmp_path: Path) -> None:
    """Of three steps the first is above t = 500: without guidance there, one row is evaluated."""
    table = table_of(tmp_path, "sampling")
    assert checks(table) == ["none gives diffusers' images"]
    rows = [note.split(", ")[-1] for *_, note in table if "UNet rows" in note]
    assert rows == [f"{n} UNet rows an image" for n in (6, 5, 6, 6)]


def test_a_part_that_fails_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by an error of two lines, one by its time; a check that differs is no success either."""

    def broken(*_: object) -> None:
        raise RuntimeError("first | line\nsecond")

    def slow(*_: object) -> None:
        while True:
            pass

    def differs(setting: object, seconds: float, page: Page) -> None:
        page.check("equal", float("nan"), 1, "a note")

    parts = {"model": (broken, 0.4), "slow": (slow, 0.1), "differs": (differs, 0.5)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--tiny", "--minutes", "0.01", "--out", str(tmp_path)]) == 1
    text = (tmp_path / "gpu.md").read_text()
    assert f"| model |  | {FAILED} | RuntimeError: first / line second |" in text
    assert f"| slow |  | {FAILED} | TimeoutError: not done in its 0 s: raise --minutes |" in text
    assert "| differs | equal | DIFFERS | nan, tolerance 1: a note |" in text


def test_operations_are_those_of_the_layers() -> None:
    """339 G multiplications for 64x64 latents (Kim et al., "BK-SDM", 2023, table 1: SD 1.4, whose layers have
    nearly the same sizes), and those of attention, two products of n tokens with n and with 77, which they do
    not count; two operations each. The backward pass takes twice as many."""
    config = SD21["unet"] | {"sample_size": 64, "in_channels": 4}
    forward = flops_of_step(config, 1, 77, backward=False)
    levels = [(4096, 320, 5), (1024, 640, 5), (256, 1280, 5), (64, 1280, 1)]  # tokens, width, blocks
    attention = sum(2 * blocks * tokens * (tokens + 77) * width for tokens, width, blocks in levels)
    assert forward == pytest.approx(2 * (339e9 + attention), rel=0.01)
    assert flops_of_step(config, 1, 77) == pytest.approx(3 * forward, rel=0.01)
