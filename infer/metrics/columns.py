"""The registry of columns: what each number is, how it is shown, and which direction is better.

The table of a comparison, its page, exports, gallery and the terminal take names and formats from here.
"""

from typing import NamedTuple

from infer.metrics.similarity import COPY_THRESHOLD


class Column(NamedTuple):
    """A column of a comparison's table.

    Attributes:
        group: heading over several columns.
        label: heading.
        better: "↓", "↑" or "".
        format: of its numbers.
        hint: explanation.
        short: heading in the terminal; "": not shown there.
        minor: shown on request only.
    """

    group: str
    label: str
    better: str
    format: str
    hint: str
    short: str = ""
    minor: bool = False


OWN, TOP, SSCD = "similarity to own image", "similarity to nearest image", "SSCD to own image"
SPREAD, SSCD_MORE = "spread of similarity to own", "more of SSCD"
QUALITY, COST, TRANSITION, COUNTS = "quality", "cost per image", "transition", "counts"
COPIES = "95th percentile: the copies that remain."
ABOVE = f"> {COPY_THRESHOLD:g}"
ABOVE_HINT = f"Share of images above {COPY_THRESHOLD:g}, which count as copies."

# `<measure>_<statistic>`, or in SHARES: a statistic of bootstrap.py over the images' column <measure>
COLUMNS = {
    "images": Column("", "images", "", "{:.0f}", "Images generated."),
    "failed": Column("", "failed", "", "{:.0f}", "Latents or pixels are not finite.", "failed", True),
    "unreadable": Column("", "unreadable", "", "{:.0f}", "Images that could not be read.", "unread.", True),
    "undefined": Column(
        "", "undefined", "", "{:.0f}", "Images of one colour: they have no similarity, and are left out.",
        "undef.", True,
    ),
    "refused": Column(
        "", "refused", "", "{:.0f}", "Images that the guard refused: near to a training image.", "refused",
        True,
    ),
    "similarity_own_mean": Column(
        OWN, "mean", "↓", "{:.3f}", "To the training image of the same prompt (the nearest of several).",
        "own sim",
    ),
    "similarity_own_p95": Column(OWN, "p95", "↓", "{:.3f}", COPIES, "p95"),
    "share_above_05": Column(OWN, ABOVE, "↓", "{:.1%}", ABOVE_HINT),
    "similarity_top_mean": Column(TOP, "mean", "↓", "{:.3f}", "To the nearest training image.", "top sim"),
    "similarity_top_p95": Column(TOP, "p95", "↓", "{:.3f}", COPIES),
    "sscd_own_mean": Column(SSCD, "mean", "↓", "{:.3f}", "The same by SSCD, a copy detector.", "SSCD"),
    "sscd_own_p95": Column(SSCD, "p95", "↓", "{:.3f}", COPIES, "p95"),
    "sscd_share_above_05": Column(SSCD, ABOVE, "↓", "{:.1%}", ABOVE_HINT),
    "clip_score_mean": Column(QUALITY, "CLIP", "↑", "{:.3f}", "Alignment with the prompt, mean.", "CLIP"),
    "objects_found_mean": Column(
        QUALITY, "objects", "↑", "{:.1%}", "Share of the named objects that CLIP finds in the image.",
        "objects",
    ),
    "fid": Column(QUALITY, "FID", "↓", "{:.1f}", "Fréchet distance of generated to training images.", "FID"),
    "kid": Column(QUALITY, "KID", "↓", "{:.4f}", "Kernel distance of generated to training images."),
    "cmmd": Column(QUALITY, "CMMD", "↓", "{:.3f}", "Maximum mean discrepancy of CLIP embeddings."),
    "diversity_mean": Column(QUALITY, "diversity", "↑", "{:.3f}", "Difference of a prompt's images, mean."),
    "nfe_mean": Column(COST, "UNet evals", "↓", "{:.1f}", "Evaluations of the UNet, mean.", "NFE"),
    "gradient_passes_mean": Column(
        COST, "gradients", "↓", "{:.1f}", "UNet evaluations that were also differentiated, mean.", "grads"
    ),
    "attempts_mean": Column(
        COST, "attempts", "↓", "{:.2f}", "How often the guard had an image made, mean.", "tries"
    ),
    "seconds_per_image": Column(COST, "seconds", "↓", "{:.2f}", "Wall-clock time, mean.", "s/img"),
    "peak_memory_gib": Column(
        COST, "GiB", "↓", "{:.1f}", "Highest memory of the accelerator; on CPU, of the process."
    ),
    "fired_share": Column(TRANSITION, "fired", "", "{:.0%}", "Share of images with a transition.", "fired"),
    "transition_timestep_median": Column(TRANSITION, "timestep", "", "{:.0f}", "Of the images, median.", "t"),
    "similarity_own_std": Column(SPREAD, "std", "", "{:.3f}", "Standard deviation over images.", minor=True),
    "similarity_own_p75": Column(SPREAD, "p75", "↓", "{:.3f}", "75th percentile.", minor=True),
    "similarity_own_p90": Column(SPREAD, "p90", "↓", "{:.3f}", "90th percentile.", minor=True),
    "share_above_07": Column(
        SPREAD, "> 0.7", "↓", "{:.1%}", "Share of images above 0.7.", minor=True
    ),
    "sscd_own_std": Column(SSCD_MORE, "std", "", "{:.3f}", "Standard deviation over images.", minor=True),
    "sscd_own_p75": Column(SSCD_MORE, "p75", "↓", "{:.3f}", "75th percentile.", minor=True),
    "sscd_own_p90": Column(SSCD_MORE, "p90", "↓", "{:.3f}", "90th percentile.", minor=True),
    "sscd_share_above_07": Column(
        SSCD_MORE, "> 0.7", "↓", "{:.1%}", "Share of images above 0.7.", minor=True
    ),
    "sscd_top_mean": Column(SSCD_MORE, "nearest", "↓", "{:.3f}", "To the nearest image, mean.", minor=True),
    "sscd_top_p95": Column(SSCD_MORE, "nearest p95", "↓", "{:.3f}", "To the nearest image.", minor=True),
    "prompts": Column(COUNTS, "prompts", "", "{:.0f}", "Prompts that were run.", minor=True),
    "gated_share": Column(COUNTS, "gated", "", "{:.0%}", "Images with plain guidance.", minor=True),
    "without_alternative": Column(COUNTS, "no detour", "", "{:.0f}", "Images without a detour.", minor=True),
}  # fmt: skip
# images without similarity; shown where there are any
LOST = ("failed", "unreadable", "undefined", "refused")
FIGURES = [name for name, column in COLUMNS.items() if column.group not in ("", TRANSITION, COUNTS)]
# columns of an image
MEASURES = ("similarity_own", "similarity_top", "sscd_own", "sscd_top", "clip_score", "objects_found")
SHARES = {
    "similarity_own": {"share_above_05": "share_above_05", "share_above_07": "share_above_07"},
    "sscd_own": {"sscd_share_above_05": "share_above_05", "sscd_share_above_07": "share_above_07"},
}

# Columns of an image in samples.parquet that the gallery shows: label and format
IMAGE_COLUMNS = {
    "similarity_own": ("similarity to own", "{:.3f}"),
    "similarity_top": ("similarity to nearest", "{:.3f}"),
    "top_train_id": ("nearest image", "{}"),
    "sscd_own": ("SSCD to own", "{:.3f}"),
    "sscd_top": ("SSCD to nearest", "{:.3f}"),
    "sscd_top_id": ("SSCD nearest image", "{}"),
    "undefined": ("one colour: no similarity", "yes"),
    "clip_score": ("CLIP score", "{:.3f}"),
    "objects_found": ("named objects found", "{:.0%}"),
    "transition_timestep": ("transition", "timestep {:.0f}"),
    "gated": ("below the gate", "yes"),
    "guidance_scale": ("guidance scale", "{:g}"),
    "nfe": ("UNet evaluations", "{:.0f}"),
    "seconds": ("seconds", "{:.2f}"),
    "seed": ("seed", "{}"),
    "alternative_prompt": ("alternative prompt", "{}"),
    "failed_step": ("failed at step", "{:.0f}"),
    "attempts": ("attempts", "{:.0f}"),
    "refused": ("refused: too near to a training image", "yes"),
}


def statistics_of(measure: str) -> dict[str, str]:
    """Name of the statistic by column of the table, such as similarity_own_p95: p95."""
    names = {name: name.removeprefix(f"{measure}_") for name in COLUMNS if name.startswith(f"{measure}_")}
    return names | SHARES.get(measure, {})


def measure_of(rows) -> str:
    """The column that decides whether an image is a copy: SSCD's where it was measured."""
    return "sscd_own" if "sscd_own" in rows else "similarity_own"
