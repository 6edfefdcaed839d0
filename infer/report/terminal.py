"""A comparison for the terminal."""

from collections.abc import Callable

import pandas as pd
from rich import box
from rich.table import Table

SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "similarity_own_mean": ("own sim", "{:.3f}".format),
    "similarity_own_p95": ("p95", "{:.3f}".format),
    "similarity_top_mean": ("top sim", "{:.3f}".format),
    "sscd_own_mean": ("SSCD", "{:.3f}".format),
    "sscd_own_p95": ("p95", "{:.3f}".format),
    "clip_score_mean": ("CLIP", "{:.3f}".format),
    "fid": ("FID", "{:.1f}".format),
    "nfe_mean": ("NFE", "{:.1f}".format),
    "seconds_per_image": ("s/img", "{:.3f}".format),
    "fired_share": ("fired", "{:.0%}".format),
    "transition_timestep_median": ("t", "{:.0f}".format),
    "failed": ("failed", "{:.0f}".format),
    "unreadable": ("unread.", "{:.0f}".format),
}


def terminal_table(table: pd.DataFrame) -> Table:
    """The comparison for the terminal: one line per mitigation."""
    quiet = [key for key in ("failed", "unreadable") if key in table and not table[key].any()]
    shown = {
        key: value
        for key, value in SHOWN.items()
        if key in table and table[key].notna().any() and key not in quiet
    }
    out = Table(title="same prompts, same seeds", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("mitigation", overflow="fold", min_width=12)
    for title, _ in shown.values():
        out.add_column(title, justify="right", no_wrap=True)
    for _, row in table.iterrows():
        out.add_row(
            row["mitigation"],
            *("" if pd.isna(row[key]) else form(row[key]) for key, (_, form) in shown.items()),
        )
    return out
