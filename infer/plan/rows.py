"""A table of names and values."""

from rich.markup import escape
from rich.table import Table


def table_of(title: str, rows: dict[str, str | None]) -> Table:
    """A line a name, without those that have no value."""
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    return table
