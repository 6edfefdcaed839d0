"""The help of a command comes from a file, at once, and the file is what the parser would say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def python(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True)


def test_the_files_are_what_the_parsers_say() -> None:
    run = python("-m", "tests.help_pages", "--check")
    assert run.returncode == 0, f"run `python -m tests.help_pages`: {run.stderr[-2000:]}"


def test_help_needs_neither_torch_nor_lightning() -> None:
    run = python("-c", (
        "import sys; from infer.__main__ import main; main(['predict', '--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'jsonargparse')))"
    ))  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "--mitigation" in run.stdout
