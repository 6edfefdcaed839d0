"""The help of a command comes from a file, at once, and the file is what the parser would say."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.help_pages import help_of, pages

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("program", "command", "path"), list(pages()))
def test_the_file_is_what_the_parser_says(program: str, command: str, path: Path) -> None:
    assert path.read_text() == help_of(program, command), "run `python -m tests.help_pages`"
    assert len(path.read_text().splitlines()) > 20


def test_help_needs_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; from infer.__main__ import main; main(['predict', '--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'jsonargparse')))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "--mitigation" in run.stdout
