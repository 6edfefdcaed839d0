"""What a finetune would do, before it does it."""

from typing import Any

from rich.table import Table

from data.pipeline import check_pipeline
from train.finetune import Finetune
from train.latents import LatentData


def plan_table(model: Finetune, data: LatentData, trainer: Any) -> Table:
    """Steps, images seen and exposures; what is not on this machine is named, not guessed."""
    table = Table(title="plan", show_header=False)
    batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    draws = batch * trainer.max_steps

    def row(name: str, value: Any) -> None:
        table.add_row(name, str(value))

    row("model", model.source + (f" @ {model.revision}" if model.revision else ""))
    try:
        check_pipeline(model.source)
        row("model folder", "found, or a Hub id: fetched when the fit starts")
    except FileNotFoundError as error:
        row("model folder", f"missing: {error}")
    row("optimizer steps", f"{trainer.max_steps:,}")
    row(
        "batch",
        f"{data.batch_size} x {trainer.world_size} devices x {trainer.accumulate_grad_batches} accumulated"
        f" = {batch}",
    )
    row("learning rate", f"{model.lr:g}, {model.warmup_steps:,} warm-up steps, then {model.decay}")
    row("precision", trainer.precision)
    gamma = "none" if model.min_snr_gamma is None else f"min-SNR, gamma {model.min_snr_gamma:g}"
    row("loss weights; noise offset", f"{gamma}; {model.noise_offset:g}")
    row("images shown in all", f"{draws:,}")
    try:
        data.load()
    except FileNotFoundError as error:
        row("data", f"missing: {error}; exposures per image are the draws over their number")
        return table
    images, ordinary = len(data.images), len(data.ordinary_images)
    exposure = data.exposure
    duplicated = (
        len(exposure.duplicated(images, data.seed)) if exposure.copies > 1 or exposure.weight != 1 else 0
    )
    one_pass = len(exposure.one_pass(images, ordinary, data.seed, 0))
    row("images", f"{data.images.report()}, {duplicated:,} of them duplicated")
    row("ordinary images", data.ordinary_images.report() if ordinary else "none")
    row("draws in a pass", f"{one_pass:,}; passes: {draws / one_pass:.2f}")
    if exposure.weight == 1:
        row("exposures of a duplicated image", f"{exposure.copies * draws / one_pass:.1f}")
    else:
        drawn = draws * images / one_pass  # without the ordinary ones
        drawn *= exposure.weight / (images - duplicated + exposure.weight * duplicated)
        row("exposures of a duplicated image", f"{drawn:.1f} expected (drawn with replacement)")
    return table
