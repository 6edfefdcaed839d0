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


def test_help_and_wrong_options_need_neither_torch_nor_lightning() -> None:
    """Of the predictions, whose classes of mitigations take settings of their own, and of the training."""
    run = python("-c", (
        "import sys; from infer.__main__ import main; from train.__main__ import main as train; "
        "main(['predict', '--help']); codes = [main(['predict', '--model.lerning_rate', '1']), "
        "main(['predict', '--mitigation', 'nope']), main(['compare', '--mitigations', 'none,stpp']), "
        "train(['plan', 'stream', '--data.shufle=3'])]; print(codes); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'jsonargparse')))"
    ))  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "--mitigation" in run.stdout and "[2, 1, 1, 2]" in run.stdout
    errors = run.stderr.splitlines()
    assert errors[0] == "error: --model.lerning_rate is no option: did you mean --model.lora?"
    assert "no mitigation preset 'nope'" in errors[1] and "did you mean stp" in errors[2]
    assert errors[3] == "error: --data.shufle is no option: did you mean --data.shuffle?"
