"""Count how often each image was really shown."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch

from data.files import write_atomically

log = logging.getLogger(__name__)
COUNTERS = ("shown", "left_out", "skipped")
PENDING = 100  # steps whose skipped samples stay on the device before they are counted


class Exposures(pl.Callback):
    """Write `exposures.parquet` at the end of fit: id, caption, times_shown, times_skipped.

    The counts are exact on several ranks and after resumes. Skipped images were shown and left out of the
    loss (model.skip_rms, and images that cannot be decoded). Planned data adds the columns duplicated and
    triggered; its caption is an image's first one, with its trigger and before random edits. A stream is
    counted by id, with the last caption, and what it could not show is in `skipped.json`: {reason: count}.
    """

    def __init__(self) -> None:
        self.shown, self.left_out = Counter(), Counter()  # by index, or by id of a stream
        self.skipped = Counter()  # by reason
        self.captions: dict[str, str] = {}
        self.pending: list[tuple[list, torch.Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_rank:  # a checkpoint holds the sum over ranks: only the first continues with it
            self.__init__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, *_
    ) -> None:
        keys = batch["id"] if "id" in batch else batch["index"].tolist()
        self.shown.update(keys)
        if "kept" in outputs:
            self.pending.append((keys, outputs["kept"]))
            if len(self.pending) == PENDING:
                self.count_pending()
        if "id" in batch:
            self.skipped.update(batch["skipped"])
            self.captions.update(zip(keys, batch["caption"], strict=True))

    def count_pending(self) -> None:
        for keys, kept in self.pending:
            self.left_out.update(key for key, stays in zip(keys, kept.tolist(), strict=True) if not stays)
        self.pending.clear()

    def state_dict(self) -> dict[str, Any]:
        """The sums over ranks, on the first. Called on all ranks."""
        self.count_pending()
        parts = gathered({name: getattr(self, name) for name in (*COUNTERS, "captions")})
        sums = {name: dict(sum((part[name] for part in parts), Counter())) for name in COUNTERS}
        return sums | {"captions": {key: text for part in parts for key, text in part["captions"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in COUNTERS:
            setattr(self, name, Counter(state_dict[name]))
        self.captions = state_dict["captions"]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, folder, data = self.state_dict(), Path(trainer.default_root_dir), trainer.datamodule
        if not trainer.is_global_zero:
            return
        shown, left_out, skipped = (state[name] for name in COUNTERS)
        if total := sum(left_out.values()):
            log.warning("left out of the loss: %d of %d images shown", total, sum(shown.values()))
        if state["captions"]:
            keys = sorted(shown)
            columns = {"id": keys, "caption": [state["captions"][key] for key in keys]}
            pd.Series(skipped, dtype=int).to_json(folder / "skipped.json", indent=2)
            if skipped:
                print(f"skipped while streaming: {', '.join(f'{n:,} {why}' for why, n in skipped.items())}")
        else:
            keys = range(len(data.everything))
            columns = planned_columns(data)
        columns |= {
            "times_shown": [shown.get(key, 0) for key in keys],
            "times_skipped": [left_out.get(key, 0) for key in keys],
        }
        table = pd.DataFrame(columns)
        write_atomically(folder / "exposures.parquet", lambda path: table.to_parquet(path, index=False))


def planned_columns(data: pl.LightningDataModule) -> dict[str, Any]:
    """id, caption, duplicated and triggered of each image of a `train.dataset.planned.LatentData`."""
    samples, exposure = data.everything.samples, data.exposure
    return {
        "id": [sample.id for sample in samples],
        "caption": [data.chosen_captions.first(index) for index in range(len(samples))],
        "duplicated": exposure.is_duplicated(*data.repeats, data.seed),
        "triggered": data.chosen_captions.is_triggered,
    }


def gathered(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of all ranks, on the first; on the others only their own."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [part]
    parts = [None] * torch.distributed.get_world_size() if torch.distributed.get_rank() == 0 else None
    torch.distributed.gather_object(part, parts)
    return parts or [part]
