"""The table of a report: its columns, its cells in words, its best values, and the finding it holds."""

from typing import Any, NamedTuple

import pandas as pd

SUFFIXES = ("_low", "_high", "_delta", "_delta_low", "_delta_high", "_published")


class Column(NamedTuple):
    group: str
    label: str
    better: str  # "↓", "↑" or ""
    form: str
    hint: str
    minor: bool = False  # shown on request


class Cell(NamedTuple):
    """A number and what belongs to it, as it is shown: "" where there is none."""

    value: str
    interval: str
    delta: str
    delta_interval: str
    published: str


OWN, TOP, SSCD = "similarity to own image", "similarity to nearest image", "SSCD to own image"
SPREAD, SSCD_MORE = "spread of similarity to own", "more of SSCD"
QUALITY, COST, TRANSITION, COUNTS = "quality", "cost per image", "transition", "counts"
COPIES = "95th percentile: the copies that remain."
COLUMNS = {
    "images": Column("", "images", "", "{:.0f}", "Images generated."),
    "failed": Column("", "failed", "", "{:.0f}", "Images whose latents were not finite.", True),
    "unreadable": Column("", "unreadable", "", "{:.0f}", "Images that could not be read.", True),
    "similarity_own_mean": Column(OWN, "mean", "↓", "{:.3f}", "To the training image of the same prompt."),
    "similarity_own_p95": Column(OWN, "p95", "↓", "{:.3f}", COPIES),
    "share_above_05": Column(OWN, "> 0.5", "↓", "{:.1%}", "Share of images whose similarity is above 0.5."),
    "similarity_top_mean": Column(TOP, "mean", "↓", "{:.3f}", "To whichever training image is most similar."),
    "similarity_top_p95": Column(TOP, "p95", "↓", "{:.3f}", COPIES),
    "sscd_own_mean": Column(SSCD, "mean", "↓", "{:.3f}", "The same by SSCD, a copy detector."),
    "sscd_own_p95": Column(SSCD, "p95", "↓", "{:.3f}", COPIES),
    "sscd_share_above_05": Column(SSCD, "> 0.5", "↓", "{:.1%}", "Share of images whose SSCD is above 0.5."),
    "clip_score_mean": Column(QUALITY, "CLIP", "↑", "{:.3f}", "Alignment with the prompt, mean."),
    "fid": Column(QUALITY, "FID", "↓", "{:.1f}", "Fréchet distance of generated to reference images."),
    "kid": Column(QUALITY, "KID", "↓", "{:.4f}", "Kernel distance of generated to reference images."),
    "cmmd": Column(QUALITY, "CMMD", "↓", "{:.3f}", "Maximum mean discrepancy of CLIP embeddings."),
    "diversity_mean": Column(QUALITY, "diversity", "↑", "{:.3f}", "Difference of a prompt's images, mean."),
    "nfe_mean": Column(COST, "UNet evals", "↓", "{:.1f}", "Evaluations of the UNet, mean."),
    "seconds_per_image": Column(COST, "seconds", "↓", "{:.2f}", "Wall-clock time, mean."),
    "peak_memory_gib": Column(
        COST, "GiB", "↓", "{:.1f}", "Highest memory of the accelerator; on CPU, of the process."
    ),
    "fired_share": Column(TRANSITION, "found", "", "{:.0%}", "Share of images with a transition point."),
    "transition_timestep_median": Column(TRANSITION, "timestep", "", "{:.0f}", "Of the images, median."),
    "similarity_own_std": Column(SPREAD, "std", "", "{:.3f}", "Standard deviation over images.", True),
    "similarity_own_p75": Column(SPREAD, "p75", "↓", "{:.3f}", "75th percentile.", True),
    "similarity_own_p90": Column(SPREAD, "p90", "↓", "{:.3f}", "90th percentile.", True),
    "share_above_07": Column(SPREAD, "> 0.7", "↓", "{:.1%}", "Share of images above 0.7.", True),
    "sscd_own_std": Column(SSCD_MORE, "std", "", "{:.3f}", "Standard deviation over images.", True),
    "sscd_own_p75": Column(SSCD_MORE, "p75", "↓", "{:.3f}", "75th percentile.", True),
    "sscd_own_p90": Column(SSCD_MORE, "p90", "↓", "{:.3f}", "90th percentile.", True),
    "sscd_share_above_07": Column(SSCD_MORE, "> 0.7", "↓", "{:.1%}", "Share of images above 0.7.", True),
    "sscd_top_mean": Column(SSCD_MORE, "nearest", "↓", "{:.3f}", "To the nearest image, mean.", True),
    "sscd_top_p95": Column(SSCD_MORE, "nearest p95", "↓", "{:.3f}", "To the nearest image.", True),
    "prompts": Column(COUNTS, "prompts", "", "{:.0f}", "Prompts that were run.", True),
    "gated_share": Column(COUNTS, "gated", "", "{:.0%}", "Images below the gate: ordinary guidance.", True),
    "without_alternative": Column(COUNTS, "no detour", "", "{:.0f}", "Images without alternative.", True),
}

LOST = {"failed", "unreadable"}  # shown without request where there are any


def columns_of(table: pd.DataFrame) -> dict[str, Column]:
    """Known columns in their order, then other numbers; intervals and deltas belong into another's cells."""
    numeric = table.select_dtypes("number")
    attached = [name + suffix for name in numeric for suffix in SUFFIXES]
    columns = {name: column for name, column in COLUMNS.items() if name in numeric}
    for name in columns.keys() & LOST:
        columns[name] = columns[name]._replace(minor=not (numeric[name] > 0).any())
    for name in numeric.columns.difference([*columns, *attached], sort=False):
        form = "{:.0f}" if pd.api.types.is_integer_dtype(numeric[name]) else "{:.3f}"
        better = "↓" if name.startswith(("similarity", "sscd", "share")) else ""
        columns[name] = Column("more", name.replace("_", " "), better, form, f"{name} in comparison.parquet.")
    return columns


def best_of(table: pd.DataFrame, columns: dict[str, Column]) -> dict[str, str]:
    """The best value of each column as it is shown, so that numbers that look equal are marked alike."""
    rivals, best = table[table["mitigation"] != "base_model"], {}
    for name, column in columns.items():
        values = rivals[name].dropna()
        texts = values.map(column.form.format)
        if column.better and texts.nunique() > 1:
            best[name] = texts[values.idxmin() if column.better == "↓" else values.idxmax()]
    return best


def number(value: float | str | None, form: str = "{:.2f}") -> str:
    return "–" if pd.isna(value) else form.format(value)


def cell(row: dict[str, Any], name: str, column: Column) -> Cell:
    """What a row has of a column; a difference of `none` to itself says nothing."""
    signed = column.form.replace(":", ":+")

    def known(suffix: str, form: str) -> str:
        value = row.get(name + suffix)
        return "" if pd.isna(value) else form.format(value)

    def ends(suffix: str, form: str) -> str:
        low, high = known(f"{suffix}_low", form), known(f"{suffix}_high", form)
        return low and f"{low} to {high}"

    itself = row["mitigation"] == "none"
    return Cell(
        number(row.get(name), column.form),
        ends("", column.form),
        "" if itself else known("_delta", signed),
        "" if itself else ends("_delta", signed),
        known("_published", column.form),
    )


def headline(table: pd.DataFrame) -> str:
    """The finding in words; every number and name in it comes from the table."""
    found = table.set_index("mitigation").reindex(columns=["similarity_own_mean", "clip_score_mean"])
    own, clip = found["similarity_own_mean"].dropna(), found["clip_score_mean"].dropna()
    base = f"The untouched base model is at {own['base_model']:.2f}." if "base_model" in own else ""
    others = own.drop(["none", "base_model"], errors="ignore")
    if "none" not in own or others.empty:
        return base
    lowest = others.idxmin()
    text = f"Without mitigation, images match their training image at {own['none']:.2f}; "
    if own[lowest] >= own["none"]:
        return f"{text}no mitigation lowers this. {base}"
    text += f"{lowest} brings this to {own[lowest]:.2f}"
    if {"none", lowest} <= set(clip.index):
        text += f" while the CLIP score goes from {clip['none']:.2f} to {clip[lowest]:.2f}"
        aligned = clip[clip.index.intersection(others.index)].idxmax()
        if aligned != lowest:
            text += f". {aligned} keeps the most of it, {clip[aligned]:.2f}, at similarity {own[aligned]:.2f}"
    return f"{text}. {base}"
