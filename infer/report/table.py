"""The table of a report: its columns, cells and best values, and the headline."""

from typing import Any, NamedTuple

import pandas as pd

from infer.metrics.aggregate import can_win
from infer.metrics.columns import COLUMNS, LOST, Column, measure_of
from infer.metrics.similarity import CORRELATION


class Cell(NamedTuple):
    """A number and what belongs to it, as text: "" where there is none."""

    value: str
    interval: str
    delta: str
    delta_interval: str
    published: str


def columns_of(table: pd.DataFrame) -> dict[str, Column]:
    """The table's columns in the registry's order; intervals and deltas are parts of their cells."""
    columns = {name: column for name, column in COLUMNS.items() if name in table}
    for name in columns.keys() & set(LOST):
        columns[name] = columns[name]._replace(minor=not (table[name] > 0).any())
    return columns


def best_of(table: pd.DataFrame, columns: dict[str, Column]) -> dict[str, str]:
    """The best value of each column as text, so that numbers that look equal are marked alike."""
    rivals, best = table[can_win(table)], {}
    for name, column in columns.items():
        values = rivals[name].dropna()
        texts = values.map(column.format.format)
        if column.better and texts.nunique() > 1:
            best[name] = texts[values.idxmin() if column.better == "↓" else values.idxmax()]
    return best


def number(value: float | str | None, number_format: str = "{:.2f}") -> str:
    return "–" if pd.isna(value) else number_format.format(value)


def cell(row: dict[str, Any], name: str, column: Column) -> Cell:
    """A row's cell; `none` has no difference to itself."""
    signed = column.format.replace(":", ":+")

    def text(suffix: str, number_format: str) -> str:
        value = row.get(name + suffix)
        return "" if pd.isna(value) else number_format.format(value)

    def ends(suffix: str, number_format: str) -> str:
        low, high = text(f"{suffix}_low", number_format), text(f"{suffix}_high", number_format)
        return low and f"{low} to {high}"

    is_reference = row["mitigation"] == "none"
    return Cell(
        number(row.get(name), column.format),
        ends("", column.format),
        "" if is_reference else text("_delta", signed),
        "" if is_reference else ends("_delta", signed),
        text("_published", column.format),
    )


def headline(table: pd.DataFrame) -> str:
    """The finding in a few sentences; every number and name in it comes from the table."""
    measure = measure_of({name.removesuffix("_mean") for name in table})
    rows = table.set_index("mitigation").reindex(columns=[f"{measure}_mean", "clip_score_mean"])
    own, clip = rows[f"{measure}_mean"].dropna(), rows["clip_score_mean"].dropna()
    of = "SSCD" if measure == "sscd_own" else CORRELATION
    base = f"The untouched base model is at {own['base_model']:.2f}" if "base_model" in own else ""
    if "none" not in own:
        return base and f"{base} ({of})."
    base = base and f" {base}."
    text = f"Without mitigation, images match their training image at {own['none']:.2f} ({of})"
    others = own[own.index.isin(table["mitigation"][can_win(table)])].drop("none", errors="ignore")
    if others.empty:
        return f"{text}.{base}"
    lowest = others.idxmin()
    if own[lowest] >= own["none"]:
        return f"{text}; no mitigation lowers this.{base}"
    text += f"; {lowest} brings this to {own[lowest]:.2f}"
    if {"none", lowest} <= set(clip.index):
        text += f" while the CLIP score goes from {clip['none']:.2f} to {clip[lowest]:.2f}"
        aligned = clip[clip.index.intersection(others.index)].idxmax()
        if aligned != lowest:
            text += f". {aligned} keeps the most of it, {clip[aligned]:.2f}, at similarity {own[aligned]:.2f}"
    return f"{text}.{base}"
