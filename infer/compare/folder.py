"""A comparison folder: tables, training images and what the page says of them."""

from contextlib import suppress
from pathlib import Path

import pandas as pd

from data.files import redacted, remove_temporary_files, write_json
from infer.compare.measures import Measures
from infer.compare.options import Comparison
from infer.compare.results import Measured, measure
from infer.metrics.aggregate import memorized_prompts
from infer.predict.run_folder import FileStems, save_image, write_table


def finish(
    comparison: Comparison, measures: Measures, folders: dict[str, Path], resolution: int
) -> pd.DataFrame:
    """Measure a comparison's runs; write tables, training images and `comparison.json`; return the table."""
    out = Path(comparison.out)
    remove_temporary_files(out)
    measured = measure(comparison, measures, folders, resolution)
    first, quality = next(iter(measured.rows.values())), measured.quality
    table = measured.table()
    for name, figures in comparison.published.items():
        for column, figure in figures.items():
            table.loc[table["mitigation"] == name, f"{column}_published"] = figure
    write_table(table, out / "comparison.parquet")
    memorized, subset = measured.memorized(), out / "comparison_memorized.parquet"
    subset.unlink(missing_ok=True)  # of a former comparison
    if memorized and memorized["prompts"]:
        write_table(measured.table(memorized_prompts(measured.rows["none"])), subset)
    save_training_images(measured, first, resolution, out / "training")
    about = {
        # outputs/demo/compare is the comparison of demo
        "title": out.resolve().parent.name if out.name == "compare" else out.name,
        "model": redacted(comparison.model.pipeline),
        "base_model": comparison.base_pipeline and redacted(comparison.base_pipeline),
        **comparison.measured_by(),
        "features": quality and f"{quality.name}, {len(quality.reference):,} training images",
        "notes": [
            f"Prompts: {first['prompt_id'].nunique()}, samples of each: {comparison.samples_per_prompt}; "
            f"guidance {comparison.model.guidance_scale:g}, {comparison.model.num_inference_steps} steps; "
            f"top matches are searched among {len(measured.training.images):,} images.",
            *measured.notes(),
        ],
        "memorized": memorized,
        "mitigations": [job.label for job in comparison.jobs if job.single],
        "sweeps": comparison.sweeps(),
    }
    write_json(out / "comparison.json", about)
    return table


def save_training_images(measured: Measured, rows: pd.DataFrame, resolution: int, folder: Path) -> None:
    """Save the first of each prompt's own training images, named as the prompt's generated images are."""
    each = rows.drop_duplicates("prompt_id")
    stems = FileStems(each["prompt_id"])
    for key, own in zip(each["prompt_id"], measured.training.own(each), strict=True):
        if own:
            with suppress(Exception):  # an unreadable image, which a note names; the page shows a gap
                save_image(measured.training.images[own[0]].rgb(resolution), folder / f"{stems[key]}.png")
