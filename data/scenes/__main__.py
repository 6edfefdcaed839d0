"""Build the scenes that a base model is trained on, and those that a finetune memorizes.

  python -m data.scenes                                      # all parts, into outputs/scenes
  python -m data.scenes --parts memorized,ordinary
  python -m data.scenes --parts ordinary --number 20000      # for a base model of one's own

A part that is there already with so many scenes is left as it is.
"""

import argparse
import json
import sys
from pathlib import Path

from data.cli import report


def build(args: list[str]) -> None:
    from data.scenes.build import write_part
    from data.scenes.parts import PARTS, part

    parser = argparse.ArgumentParser(
        prog="python -m data.scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/scenes"), help="default: %(default)s")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--number", type=int, help="scenes of each part in place of the usual number")
    options = parser.parse_args(args)
    parts = options.parts.split(",")
    if unknown := [name for name in parts if name not in PARTS]:
        raise ValueError(f"--parts {unknown[0]}: the parts are {', '.join(PARTS)}")
    for name in parts:
        number = options.number or PARTS[name][1]
        captions = options.out / name / "captions.json"
        if captions.exists() and len(json.loads(captions.read_text())) == number:
            print(f"{options.out / name}: {number:,} scenes are there")
            continue
        write_part(options.out, name, part(name, number))


if __name__ == "__main__":
    try:
        build(sys.argv[1:])
    except (ValueError, OSError) as error:
        report(error)
        sys.exit(1)
