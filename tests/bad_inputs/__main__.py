"""The page of bad inputs: what they are, the command, and the line that is seen.

python -m tests.bad_inputs --out FOLDER
"""

import argparse
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bad_inputs import Group, fault, folders, images, models, prompts, runs, try_out

GROUPS = {group.title: group for group in (
    prompts.PROMPTS, images.IMAGES, images.SHARDS, folders.FOLDERS, models.MODELS, models.CONFIGS,
    models.LORAS, models.INDICES, models.PRESETS, runs.COMPARISONS, runs.SCORES, runs.RESUMED,
    runs.CHECKPOINTS, runs.SETTINGS, runs.OPTIONS,
)}  # fmt: skip
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Bad inputs</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
td {{ border-top: 1px solid #ddd; padding: .3rem .8rem .3rem 0; vertical-align: top }}
td:first-child {{ width: 30% }}
code {{ font-size: 13px; overflow-wrap: anywhere }}
.wrong {{ color: #b00 }}
</style>
<h1>Bad inputs</h1>
<p>{count} inputs, and the line that a user sees for each. {wrong} are not as they should be.</p>
{groups}
</html>
"""


def section(group: Group) -> tuple[str, int]:
    """A table of a group's inputs, as they are now, and how many are not as they should be."""
    rows, wrong = [], 0
    for bad in group.inputs:
        with TemporaryDirectory() as folder:
            seen = try_out(group, bad, Path(folder))
        failed = fault(bad, seen)
        wrong += failed is not None
        line = "\n".join(seen.lines if failed else (seen.errors() or seen.like(bad.line))[:1])
        command = group.command.format(bad.argument)
        shown = f"<code{' class=wrong' * bool(failed)}>{escape(line)}</code>"
        rows.append(f"<tr><td>{escape(bad.what)}<br><code>{escape(command)}</code></td><td>{shown}</td></tr>")
    return f"<h2>{escape(group.title)}</h2>\n<table>{''.join(rows)}</table>", wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bad_inputs", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for bad_inputs.html")
    out = parser.parse_args().out
    sections = [section(group) for group in GROUPS.values()]
    out.mkdir(parents=True, exist_ok=True)
    page = PAGE.format(
        count=sum(len(group.inputs) for group in GROUPS.values()), wrong=sum(wrong for _, wrong in sections),
        groups="\n".join(text for text, _ in sections),
    )  # fmt: skip
    (out / "bad_inputs.html").write_text(page, encoding="utf-8")
    print(out / "bad_inputs.html")


if __name__ == "__main__":
    main()
