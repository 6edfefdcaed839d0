"""Every command in a README or in configs/RESULTS.md parses: its options and its configs exist."""

import re
import shlex
from pathlib import Path

import pytest

import infer.__main__
import train.__main__
from tests.conftest import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("*/README.md"),
    ROOT / "configs/RESULTS.md",
    *ROOT.glob("configs/cluster/*.md"),
]
MAINS = {"train": train.__main__.main, "infer": infer.__main__.main}
FIT = "--config configs/train/laion10k.yaml --data.limit 10000 --data.batch_size 2 --checkpoint_every 1000"


def commands(page: Path) -> list[str]:
    """The commands of our programs in a page's code blocks, continued lines joined, comments left out."""
    blocks = re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [match[1] for line in lines if (match := re.search(r"-m ((?:train|infer) .*)", line))]


ALL = sorted({command for page in PAGES for command in commands(page)})


def test_the_pages_have_commands() -> None:
    assert len(ALL) > 20


@pytest.mark.parametrize("command", ALL)
def test_a_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """`--print_config` parses all options and stops there; commands without it need their files only."""
    monkeypatch.chdir(ROOT)
    program, *args = shlex.split(command.replace("$FIT", FIT), comments=True)
    if args[0] == "report":
        assert MAINS[program](["report", "--help"]) == 0
        return
    try:
        code = MAINS[program]([*args, "--print_config"])
    except SystemExit as stopped:  # the parser's way to end
        code = stopped.code
    assert not code, capsys.readouterr().err
