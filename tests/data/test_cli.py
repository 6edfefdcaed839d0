"""What the commands say: errors in one line, of several processes once, and warnings above progress bars."""

import logging
import sys
from argparse import ArgumentError
from typing import Any, Union

import pytest
from jsonargparse import ArgumentParser
from tqdm import tqdm

from data.arguments import parse
from data.cli import AboveBars, run

SECRET = "https://me:pass@host/model.pt?X-Amz-Signature=signed"  # noqa: S105


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error, code", [
    (ValueError("no such thing"), 1), (FileNotFoundError("no such thing"), 1),
    (ArgumentError(None, "no such thing"), 2),
])  # fmt: skip
def test_an_error_stands_below_the_bar(capsys: pytest.CaptureFixture, error: Exception, code: int) -> None:
    with tqdm(total=3, file=sys.stderr) as bar:
        bar.update()
        assert run("python -m x", "", {"go": lambda args: fail(error)}, ["go"]) == code
    assert capsys.readouterr().err.splitlines()[-1] == "error: no such thing"


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_an_error_of_all_processes_is_said_by_the_first(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One of a disk may be another machine's, so each says its own."""
    for variable in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "1")
    for error in (ValueError("of all"), OSError("of a disk")):
        assert run("python -m x", "", {"go": lambda args, error=error: fail(error)}, ["go"]) == 1
    assert capsys.readouterr().err == "error (process 1): of a disk\n"


@pytest.mark.parametrize("text", [
    "[gloo/transport/tcp/pair.cc:537] Read error [10.0.0.1]:27557: Connection reset by peer. GLHF!",
    "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:2769.",
    "NCCL error in: x.cpp:1, remote process exited or there was a network error",
])  # fmt: skip
def test_a_lost_process_is_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Of the first process that is left, whose traceback would only say where it waited."""
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        assert run("python -m x", "", {"go": lambda args: fail(RuntimeError(text))}, ["go"]) == 1
        errors = capsys.readouterr().err
        assert errors.count("\n") == errors.count("error: another process of this run ended") == lines
    with pytest.raises(RuntimeError):
        run("python -m x", "", {"go": lambda args: fail(RuntimeError("of our own"))}, ["go"])


def test_a_warning_stands_on_a_line_of_its_own(capsys: pytest.CaptureFixture) -> None:
    """Without secrets; the bar is drawn again below it."""
    log = logging.Logger("x")
    log.addHandler(AboveBars(logging.WARNING))
    with tqdm(total=3, desc="bar", file=sys.stderr) as bar:
        bar.update()
        log.warning("cannot load %s", SECRET)
        log.info("unimportant")
        log.warning("another")
    drawn = [line.rpartition("\r")[2] for line in capsys.readouterr().err.rstrip().split("\n")]
    assert drawn[:2] == ["cannot load https://host/model.pt", "another"] and drawn[-1].startswith("bar:")


def test_commands_warn_above_bars(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "lastResort", None)
    assert run("python -m x", "", {"go": lambda args: None}, ["go"]) == 0
    assert isinstance(logging.lastResort, AboveBars)
    logging.lastResort.handle(logging.makeLogRecord({"msg": "here", "levelno": logging.WARNING}))
    assert capsys.readouterr().err == "here\n"


@pytest.mark.parametrize("order", [Union[int, float, None], Union[float, int, None]])  # noqa: UP007
def test_a_whole_number_is_a_count_in_whatever_order_the_types_stand(order: Any) -> None:
    """1 is one batch; 1.0 is all of them."""
    parser = ArgumentParser()
    parser.add_argument("--batches", type=order)
    values = [parse(parser, ["--batches", text]).batches for text in ("1", "1.0", "0.5", "null")]
    assert [repr(value) for value in values] == ["1", "1.0", "0.5", "None"]
