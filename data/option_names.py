"""Options that are none, seen without a parser: one of Lightning's takes seconds to import and build.

The names are those of the help page, which is what the parser prints (`python -m tests.help_pages`).
"""

import difflib
import re
from collections.abc import Iterable

LISTED = re.compile(r"^  (?:-\w(?: \w+)?, )?--([\w.]+)(?: (CONFIG)(?=  |$))?", re.MULTILINE)
TYPED = re.compile(r"--([\w.]+)\+?(?:=.*)?", re.DOTALL)
LETTERS = "--prompt"  # whose value is taken to the letter, dashes and all


def unknown_option(page: str, args: list[str], program: str) -> str | None:
    """What is wrong with the first option that the page does not have, or None.

    Settings of a class (`--mitigation.timestep`) are left to the parser.
    """
    listed = dict(LISTED.findall(page))
    groups = {name for name, kind in listed.items() if kind and any(n.startswith(f"{name}.") for n in listed)}
    for before, arg in zip(["", *args], args, strict=False):
        typed = TYPED.fullmatch(arg)
        if not typed or before == LETTERS:
            continue
        name, owner = typed[1], typed[1].rpartition(".")[0]
        while owner and owner not in listed:
            owner = owner.rpartition(".")[0]
        if name not in listed and (not owner or owner in groups):
            return no_option(f"--{name}", listed, program)
    return None


def no_option(typed: str, names: Iterable[str], program: str) -> str:
    """The message, with the name that the typed one is near to."""
    near = difflib.get_close_matches(typed.lstrip("-"), names, n=1)
    ask = f"did you mean --{near[0]}?" if near and typed.startswith("-") else f"see {program} --help"
    return f"{typed} is no option: {ask}"
