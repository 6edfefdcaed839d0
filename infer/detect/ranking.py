"""Prompts of which it is not known whether they are memorized, the most suspicious first."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from data.files import printable, write_atomically
from data.table_files import csv_text
from infer.detect.detectors import DETECTORS
from infer.detect.summary import Detected

SHOWN = 20  # rows in the terminal


def ranking(detected: Detected) -> pd.DataFrame:
    """A row per unknown prompt by its score in the detector `rank_by`; those without scores last.

    `flags` counts the detectors whose threshold it exceeds, and `ordinary_above` is the share of the ordinary
    prompts with at least its score; neither is there without ordinary prompts.
    """
    by = detected.options.rank_by
    rows = detected.rows_of("unknown").sort_values(by, ascending=False, kind="stable")
    columns = {"rank": np.arange(1, len(rows) + 1), "prompt_id": rows["prompt_id"], "prompt": rows["prompt"]}
    cuts = {name: cut for name in detected.names if (cut := detected.threshold(name)) is not None}
    if cuts:
        columns["flags"] = sum((rows[name] > cut).astype(int) for name, cut in cuts.items())
    if len(ordinary := np.sort(detected.scores(by, "ordinary"))):
        above = 1 - ordinary.searchsorted(rows[by], "left") / len(ordinary)
        columns["ordinary_above"] = np.where(rows[by].notna(), above, np.nan)
    return pd.DataFrame(columns | {name: rows[name] for name in detected.names}).reset_index(drop=True)


def write_ranking(detected: Detected) -> Path:
    """Write ranking.csv; its path."""
    path = Path(detected.options.out) / "ranking.csv"
    write_atomically(path, lambda part: part.write_text(csv_text(ranking(detected)), encoding="utf-8"))
    return path


def ranking_table(detected: Detected) -> Table:
    """The first rows of the ranking."""
    rows, by = ranking(detected), detected.options.rank_by
    cuts = sum(detected.threshold(name) is not None for name in detected.names)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    table.add_column(DETECTORS[by].title, justify="right", no_wrap=True)
    if cuts:
        table.add_column(f"flags of {cuts}", justify="right", no_wrap=True)
    if "ordinary_above" in rows:
        table.add_column("ordinary above", justify="right", no_wrap=True)
    table.add_column("prompt", overflow="fold")
    for row in rows.head(SHOWN).to_dict("records"):
        cells = [str(row["rank"]), f"{row[by]:.4g}"]
        cells += [str(row["flags"])] if cuts else []
        cells += [f"{row['ordinary_above']:.1%}"] if "ordinary_above" in row else []
        table.add_row(*cells, escape(printable(textwrap.shorten(row["prompt"], 60, placeholder=" …"))))
    return table
