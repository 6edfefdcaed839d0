"""A comparison for the terminal."""

import shutil

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from infer.metrics.aggregate import in_order
from infer.metrics.columns import COLUMNS, LOST
from infer.report.table import number


def terminal_table(table: pd.DataFrame) -> Table:
    """One line per mitigation; as many columns as fit beside the whole names."""
    table = in_order(table)
    shown = [name for name, column in COLUMNS.items() if column.short and name in table]
    shown = [name for name in shown if (table[name].any() if name in LOST else table[name].notna().any())]
    shown.sort(key=LOST.__contains__)  # at the end
    cells = {name: [number(value, COLUMNS[name].format) for value in table[name]] for name in shown}
    widths = {name: 1 + max(len(text) for text in (COLUMNS[name].short, *cells[name])) for name in shown}
    free = shutil.get_terminal_size().columns - 2 - table["mitigation"].str.len().max()
    optional = [name for name in reversed(shown) if name not in LOST and not name.endswith("own_mean")]
    while sum(widths[name] for name in shown) > free and optional:
        shown.remove(optional.pop(0))
    title = "same prompts, same seeds" if len(table) > 1 else None
    out = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("mitigation", overflow="fold", min_width=12)
    for name in shown:
        out.add_column(COLUMNS[name].short, justify="right", no_wrap=True)
    for index, mitigation in enumerate(table["mitigation"]):
        out.add_row(escape(mitigation), *(cells[name][index] for name in shown))
    return out
