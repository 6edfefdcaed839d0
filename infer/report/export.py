"""The table and the plots of a comparison as files, for papers and spreadsheets."""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from data.files import write_atomically
from data.table_files import csv_text
from infer.metrics.columns import Column
from infer.report.plots import Plot, save
from infer.report.study import Study
from infer.report.table import Cell, cell, columns_of

ARROWS = {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "": ""}
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
         "<": r"\textless{}", ">": r"\textgreater{}", "–": "--"}  # fmt: skip
LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
OPTIONAL = re.compile(  # files that a comparison without a subset, a sweep or traces does not have
    r"table_memorized\.(csv|md|tex)|(frontier_memorized|sweep\d+|difference(_memorized)?|distributions)\.(svg|png)"
)


def export(study: Study, plots: Iterable[tuple[Plot, Figure]]) -> None:
    """Write table.csv, .md and .tex, the same of the memorized prompts, and plots/*.svg and .png.

    Those of a former comparison are removed.
    """
    folder = study.folder / "plots"
    folder.mkdir(exist_ok=True)
    for path in [*study.folder.iterdir(), *folder.iterdir()]:
        if OPTIONAL.fullmatch(path.name):
            path.unlink()
    for population, table in study.tables.items():
        stem = study.folder / ("table" if population == "all" else f"table_{population}")
        texts = {".md": markdown(table), ".tex": latex(table, study.populations[population]["name"])}
        texts[".csv"] = csv_text(table)
        for suffix, text in texts.items():
            write_atomically(stem.with_suffix(suffix), partial(Path.write_text, data=text, encoding="utf-8"))
    for plot, figure in plots:
        save(plot, figure, folder)


def shown(table: pd.DataFrame) -> dict[str, Column]:
    """The columns of a printed table; the CSV has all."""
    return {name: column for name, column in columns_of(table).items() if not column.minor}


def printed(content: Cell, minus: str = "−") -> list[str]:
    """A cell's parts: `0.523 [0.411, 0.601]`, `Δ −0.412 [−0.477, −0.346]`, `published 0.286`."""
    interval, change = (f" [{ends.replace(' to ', ', ')}]" if ends else ""
                        for ends in (content.interval, content.delta_interval))  # fmt: skip
    parts = [f"{content.value}{interval}"]
    if content.delta:
        parts.append(f"Δ {content.delta}{change}")
    if content.published:
        parts.append(f"published {content.published}")
    return [part.replace("-", minus) for part in parts]


def rows_of(table: pd.DataFrame, columns: dict[str, Column]) -> list[tuple[str, list[Cell]]]:
    records: list[dict[str, Any]] = table.to_dict("records")
    return [(row["mitigation"], [cell(row, *column) for column in columns.items()]) for row in records]


def markdown(table: pd.DataFrame) -> str:
    columns = shown(table)
    heads = [f"{column.group} {column.label} {column.better}".strip() for column in columns.values()]
    lines = [["mitigation", *heads], ["---", *["---:"] * len(heads)]]
    for name, cells in rows_of(table, columns):
        escaped = re.sub(r"([\\`*_\[\]<>|])", r"\\\1", name)
        lines.append([escaped, *("; ".join(printed(content)) for content in cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(table: pd.DataFrame, caption: str) -> str:
    """A booktabs table: values with intervals in brackets, published figures in a row of their own below."""
    columns, lines = shown(table), []
    for name, cells in rows_of(table, columns):
        values = [printed(content._replace(delta="", published=""), "-")[0] for content in cells]
        lines.append([escape_latex(name), *map(latex_numbers, values)])
        if any(content.published for content in cells):
            lines.append([r"\quad published", *(latex_numbers(content.published) for content in cells)])
    heads = [
        (escape_latex(column.group), f"{escape_latex(column.label)} {ARROWS[column.better]}".strip())
        for column in columns.values()
    ]
    frame = pd.DataFrame(lines, columns=pd.MultiIndex.from_tuples([("", "mitigation"), *heads]))
    align = "l" + "r" * len(columns)
    text = frame.style.hide(axis="index").to_latex(hrules=True, multicol_align="c", column_format=align)
    return rf"% {caption}; in brackets: 95 \% intervals. Needs \usepackage{{booktabs}}." + f"\n{text}"


def escape_latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)


def latex_numbers(text: str) -> str:
    """Minus signs are math, in numbers."""
    return "--" if text == "–" else escape_latex(text).replace("-", "$-$")
