"""A comparison in Weights & Biases: table, plots, a gallery, and each number as a summary metric."""

from pathlib import Path
from typing import Any

import pandas as pd

from infer.report.figures import plots_of
from infer.report.gallery import LARGE, columns_of, paths_of, ranked, thumbnail
from infer.report.plots import drawn, save
from infer.report.study import read_study
from infer.report.table import number

ROWS = 32


def log_to_wandb(folder: Path, run: Any, rows: int = ROWS) -> None:
    """Log a comparison folder to a W&B run, its plots as `write_report` draws them.

    Args:
        folder: comparison folder.
        run: what `wandb.init` returned.
        rows: how many prompts and samples the gallery has, the most similar ones first.
    """
    import wandb

    study = read_study(Path(folder))
    logged: dict[str, Any] = {
        "table" if population == "all" else f"table_{population}": wandb.Table(dataframe=table)
        for population, table in study.tables.items()
    }
    pictures = study.folder / "plots"
    pictures.mkdir(exist_ok=True)
    for plot in plots_of(study):
        _, png = save(plot, drawn(plot), pictures)
        logged[f"plots/{plot.name}"] = wandb.Image(str(png), caption=f"{plot.title}. {plot.caption}")
    names = [name for column in columns_of(study) for name in column["names"]]
    records, keys = ranked(study, names)
    gallery = wandb.Table(columns=["prompt", "sample", "training image", *names])
    for key in keys[:rows]:
        found = {name: records[name].get(key) for name in names}
        images = [path and thumbnail(path, LARGE) for path in paths_of(study.folder, key, found)]
        captions = [
            "",
            *(f"similarity {number((data or {}).get('similarity_own'))}" for data in found.values()),
        ]
        pairs = zip(images, captions, strict=True)
        shown = [image and wandb.Image(image[0], caption=caption) for image, caption in pairs]
        gallery.add_data(next(data["prompt"] for data in found.values() if data), int(key[1]), *shown)
    run.log(logged | {"gallery": gallery})
    for row in study.tables["all"].set_index("mitigation").select_dtypes("number").iterrows():
        run.summary.update(
            {f"{row[0]}/{column}": float(value) for column, value in row[1].items() if pd.notna(value)}
        )
