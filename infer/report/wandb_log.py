"""A comparison in Weights & Biases: table, plots, a gallery, and each number as a summary metric."""

import os
from pathlib import Path
from typing import Any

import pandas as pd

from infer.report.figures import plots_of
from infer.report.gallery import LARGE, names_in, paths_of, ranked, side_by_side, thumbnail
from infer.report.plots import drawn, save
from infer.report.study import Study, read_study
from infer.report.table import number

ROWS = 32


def log_to_wandb(folder: Path, run: Any, rows: int = ROWS) -> None:
    """Log a comparison folder to a W&B run, its plots as `write_report` draws them.

    The gallery is named `gallery`, or `gallery_32_of_500` where it does not hold all rows.

    Args:
        folder: comparison folder; W&B's copies of images stay in it until they are uploaded.
        run: what `wandb.init` returned.
        rows: how many prompts and samples the gallery has, the most similar ones first.
    """
    import wandb

    study = read_study(Path(folder))
    logged: dict[str, Any] = {
        "table" if population == "all" else f"table_{population}": wandb.Table(dataframe=table)
        for population, table in study.tables.items()
    }
    plots = study.folder / "plots"
    plots.mkdir(exist_ok=True)
    for plot in plots_of(study):
        _, png = save(plot, drawn(plot), plots)
        logged[f"plots/{plot.name}"] = wandb.Image(str(png), caption=f"{plot.title}. {plot.caption}")
    os.environ.setdefault("WANDB_DATA_DIR", str((study.folder / "wandb").resolve()))  # not the home folder
    name, gallery = gallery_table(study, rows)
    run.log(logged | {name: gallery})
    for mitigation, numbers in study.tables["all"].set_index("mitigation").select_dtypes("number").iterrows():
        run.summary.update(
            {f"{mitigation}/{column}": float(v) for column, v in numbers.items() if pd.notna(v)}
        )


def gallery_table(study: Study, rows: int) -> tuple[str, Any]:
    """The gallery as a W&B table, and its name, which says how many of how many rows it holds."""
    import wandb

    names = names_in(side_by_side(study))
    records, keys, count = ranked(study, names, rows)
    table = wandb.Table(columns=["prompt", "sample", "training image", *names])
    for key in keys:
        row = {name: records[name].get(key) for name in names}
        thumbnails = [path and thumbnail(path, LARGE) for path in paths_of(study, key, row)]
        captions = [
            "",
            *(f"similarity {number((data or {}).get('similarity_own'))}" for data in row.values()),
        ]
        images = [
            pair and wandb.Image(pair[0], caption=caption)
            for pair, caption in zip(thumbnails, captions, strict=True)
        ]
        table.add_data(next(data["prompt"] for data in row.values() if data), int(key[1]), *images)
    return "gallery" if count <= rows else f"gallery_{rows}_of_{count}", table
