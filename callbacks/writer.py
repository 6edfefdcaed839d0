"""Write images, rows and traces as the batches finish; a rerun makes only what is missing."""

import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from lightning.pytorch.callbacks import BasePredictionWriter

from callbacks.mitigations.base import Mitigation
from infer.denoising.hooks import GuidanceRule
from infer.predict.module import Generated
from infer.predict.run_folder import claim, merge, save_image, write_part, write_summary

log = logging.getLogger(__name__)


def rules_of(trainer: pl.Trainer) -> list[Mitigation]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Mitigation)]


def has_own(rule: Mitigation, hook: str) -> bool:
    return getattr(type(rule), hook) is not getattr(GuidanceRule, hook)


class SampleWriter(BasePredictionWriter):
    """Fill the trainer's `default_root_dir` as a predict run folder.

    Args:
        mitigation: what the `mitigation` column says: the preset's name.
    """

    def __init__(self, mitigation: str = "none"):
        super().__init__(write_interval="batch")
        self.mitigation = mitigation

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        rules = rules_of(trainer)
        contents = [rule.contents() for rule in rules]
        claim(  # on every rank, so that all of them refuse; they write the same
            Path(trainer.default_root_dir),
            {
                "mitigation": self.mitigation,
                "mitigations": [rule.identity() for rule in rules],
                **({"mitigations_sha256": contents} if any(contents) else {}),
                **pl_module.model.identity(),
                **trainer.datamodule.identity(),
            },
        )
        trainer.strategy.barrier()

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Generated,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        folder, made = Path(trainer.default_root_dir), prediction.denoised
        rows, traces = [], []
        for number, (request, image) in enumerate(zip(prediction.requests, prediction.images, strict=True)):
            path = f"images/{request.prompt_id}-{request.sample}.png"
            save_image(image, folder / path)
            transition, gated = math.nan, False
            if made.transition_timestep is not None:
                transition, gated = made.transition_timestep[number].item(), made.gated[number].item()
            failed_at = made.failed_at[number].item()
            rows.append(
                {
                    "prompt_id": request.prompt_id,
                    "sample": request.sample,
                    "prompt": request.prompt,
                    "negative_prompt": request.negative_prompt,
                    "alternative_prompt": prediction.alternatives[number],
                    "seed": request.seed,
                    "mitigation": self.mitigation,
                    "guidance_scale": pl_module.model.guidance_scale,
                    "watched": prediction.watched_space,
                    "transition_timestep": transition,
                    "gated": gated,
                    "nfe": made.nfe[number].item(),
                    "seconds": prediction.seconds_per_image,
                    "peak_memory_gib": prediction.peak_memory_gib,
                    "image": path,
                    "failed_step": failed_at if failed_at >= 0 else None,
                }
            )
            taken = made.timesteps[number].isfinite()
            traces.append(
                pd.DataFrame(
                    {
                        "prompt_id": request.prompt_id,
                        "sample": request.sample,
                        "step": range(int(taken.sum())),
                        "timestep": made.timesteps[number][taken],
                        "unconditional_rms": made.unconditional_rms[number][taken],
                        "conditional_rms": made.conditional_rms[number][taken],
                        "difference_rms": made.difference_rms[number][taken],
                        "guidance_scale": made.guidance_scale[number][taken],
                    }
                )
            )
            if failed_at >= 0:
                log.warning(
                    "%s, sample %d: latents are not finite after step %d (t = %g): its image is black",
                    request.prompt_id, request.sample, failed_at, made.timesteps[number][taken][failed_at],
                )  # fmt: skip
        write_part(folder, rows, pd.concat(traces, ignore_index=True))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the parts together; also those of a run that was killed just before this."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            rows = merge(folder, [request[:2] for request in trainer.datamodule.requests])
            if len(rows):
                rules = rules_of(trainer)
                write_summary(
                    folder,
                    rows,
                    has_transition=any(has_own(rule, "transition_timestep") for rule in rules),
                    has_alternative=any(has_own(rule, "alternative_scale") for rule in rules),
                )
        trainer.strategy.barrier()
