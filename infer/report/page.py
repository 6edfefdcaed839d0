"""The report of a comparison: headline, table, plots and gallery in one HTML file."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from infer.metrics.aggregate import can_win
from infer.metrics.similarity import BLIND_SPOTS, COPY_THRESHOLD
from infer.report.export import export
from infer.report.figures import plots_of
from infer.report.gallery import Gallery, make_gallery
from infer.report.plots import drawn, inline
from infer.report.rendering import WEB, write_page
from infer.report.study import Study, read_study
from infer.report.table import best_of, cell, columns_of, headline


def write_report(folder: Path) -> Path:
    """Write `<folder>/report.html`, a page complete in itself, and exports; return its path."""
    study = read_study(Path(folder))
    plots = [(plot, drawn(plot)) for plot in plots_of(study)]
    gallery = make_gallery(study)
    target = write_page(
        study.folder / "report.html",
        WEB / "page.html.j2",
        about=study.about,
        headline=headline(study.tables["all"].query("mitigation in @study.single")),
        blind_spots=BLIND_SPOTS,
        populations=study.populations,
        tables={name: layout(study, name) for name in study.tables},
        plots=[(plot, inline(plot, figure)) for plot, figure in plots],
        colors=study.colors,
        legend=[*study.single, *(sweep.name for sweep in study.sweeps)],
        deltas=any(name.endswith("_delta") for name in study.tables["all"]),
        gallery=gallery,
        data=embedded(gallery),
        strips="\n".join(gallery.strips),
    )
    export(study, plots)
    return target


def layout(study: Study, population: str) -> dict[str, Any]:
    """A table by blocks of rows: the mitigations, then each sweep."""
    table = study.tables[population]
    columns, by_name = columns_of(table), {row["mitigation"]: row for row in table.to_dict("records")}
    rivals = table[table["mitigation"].isin(study.single)]
    best, ranked = best_of(rivals, columns), set(rivals["mitigation"][can_win(rivals)])

    def cells(name: str) -> dict[str, tuple[Any, bool]]:
        row = {column: cell(by_name[name], column, about) for column, about in columns.items()}
        return {column: (c, name in ranked and c.value == best.get(column)) for column, c in row.items()}

    blocks = [("", {name: (name, cells(name)) for name in by_name if name in study.single})]
    for sweep in study.sweeps:
        points = {name: (f"{sweep.option} {value}", cells(name)) for name, value in sweep.points.items()}
        blocks.append((sweep.name, points))
    heads = groupby(columns.values(), lambda column: (column.group, column.minor))
    groups = [(group, len([*members]), minor) for (group, minor), members in heads]
    return {"columns": columns, "groups": groups, "blocks": blocks}


def embedded(gallery: Gallery) -> Markup:
    """The gallery's numbers and captions as JSON that no caption can break out of."""
    data = {
        "names": gallery.names, "columns": gallery.columns, "facts": gallery.facts,
        "timesteps": gallery.timesteps, "rows": gallery.rows, "threshold": COPY_THRESHOLD,
    }  # fmt: skip
    return Markup(json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))
