"""`summary.json` of a predict run folder: counts and cost."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as parquet

from data.files import read_object, write_json

NUMBERS = ("transition_timestep", "gated", "nfe", "seconds", "peak_memory_gib", "failed_step")
OF_A_GUARD = ("attempts", "refused")


def write_summary(folder: Path, has_transition: bool, has_alternative: bool, commit: str | None) -> None:
    """`summary.json`: counts, cost, when the transition fired, what failed, and the commit of the code.

    From the numbers in `samples.parquet`: its texts are not read into memory.
    """
    path = folder / "samples.parquet"
    names = {*NUMBERS, *OF_A_GUARD} & {*parquet.read_schema(path).names}
    rows = pd.read_parquet(path, columns=sorted(names))
    with parquet.ParquetFile(path) as file:
        first = next(file.iter_batches(1, columns=["mitigation", "watched"])).to_pylist()[0]
        alternatives = file.iter_batches(columns=["alternative_prompt"])
        without_alternative = sum(batch.column(0).null_count for batch in alternatives)
    transition = rows["transition_timestep"].astype(float)
    fired, gated = int(transition.notna().sum()), int(rows["gated"].sum())
    summary = {
        "mitigation": first["mitigation"],
        "images": len(rows),
        "nfe_mean": rows["nfe"].mean(),
        "seconds_per_image": rows["seconds"].mean(),
        "peak_memory_gib": None if pd.isna(peak := rows["peak_memory_gib"].max()) else peak,
        "watched": first["watched"],
        "fired": fired,
        "gated": gated if has_transition else None,
        "never_fired": len(rows) - gated - fired if has_transition else None,
        "transition_timestep_median": transition.median() if fired else None,
        "without_alternative": without_alternative if has_alternative else None,
        "failed": int(rows["failed_step"].notna().sum()),
        "commit": commit,
    }
    if "attempts" in rows:
        summary["made_again"] = int((rows["attempts"] > 1).sum())
        summary["attempts_mean"], summary["refused"] = rows["attempts"].mean(), int(rows["refused"].sum())
    write_json(folder / "summary.json", summary)


def summary_line(folder: Path) -> str:
    """The summary in a line."""
    summary = read_object(folder / "summary.json")
    if not summary:
        return "no images"
    line = f"{summary['images']} images, {summary['nfe_mean']:.1f} UNet evaluations each"
    if summary["never_fired"] is not None:
        line += f"; the transition came for {summary['fired']}"
        if summary["fired"]:
            line += f", median t = {summary['transition_timestep_median']:g}"
        if summary["never_fired"]:
            line += f", and NEVER for {summary['never_fired']}: they kept the scale before it to the end"
        if summary["gated"]:
            line += f"; {summary['gated']} were below the gate and had ordinary guidance"
    if summary["without_alternative"]:
        line += f"; {summary['without_alternative']} had no alternative and took the plain rule"
    if "refused" in summary:
        line += f"; {summary['made_again']} were too near to a training image and made again"
        line += f"; {summary['refused']} stayed so and are REFUSED: grey images, left out of scores"
    if summary["failed"]:
        line += (
            f"; {summary['failed']} FAILED (latents or pixels not finite): black images, left out of scores"
        )
    return line


def check_images(folder: Path) -> None:
    """ValueError when every image of a finished run failed."""
    summary = read_object(folder / "summary.json")
    if summary and summary["failed"] == summary["images"]:
        raise ValueError("every image failed: latents or pixels are not finite; try --model.dtype float32")
