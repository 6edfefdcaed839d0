"""Count by id how often each image of a stream was really shown, and what could not be."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import torch

from data.files import write_atomically


class StreamedExposures(pl.Callback):
    """`exposures.parquet` at the end: id, caption, times_shown, times_skipped; `skipped.json`: {why: count}.

    Exact on several ranks and after resumes. `caption` is that of the last time. Images of one id in several
    shards are counted together. Held in memory: ids and captions of what was shown.
    """

    def __init__(self) -> None:
        self.shown: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.captions: dict[str, str] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_rank:  # a checkpoint holds the sum over ranks: one takes it up
            self.__init__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, *_
    ) -> None:
        self.shown.update(batch["id"])
        self.skipped.update(batch["skipped"])
        if "kept" in outputs:  # waits for the device, with model.skip_rms alone
            kept = outputs["kept"].tolist()
            self.left_out.update(key for key, stays in zip(batch["id"], kept, strict=True) if not stays)
        self.captions.update(zip(batch["id"], batch["caption"], strict=True))

    def state_dict(self) -> dict:
        """Called on all ranks; of the first, which writes it."""
        parts = gathered((dict(self.shown), dict(self.left_out), dict(self.skipped), self.captions))
        *counts, captions = zip(*parts, strict=True)
        names = ("shown", "left_out", "skipped")
        return dict(zip(names, map(summed, counts), strict=True)) | {"captions": dict(joined(captions))}

    def load_state_dict(self, state_dict: dict) -> None:
        for name in ("shown", "left_out", "skipped"):
            setattr(self, name, Counter(state_dict.get(name, {})))
        self.captions = state_dict["captions"]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, folder = self.state_dict(), Path(trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        rows = [
            (key, state["captions"][key], count, state["left_out"].get(key, 0))
            for key, count in sorted(state["shown"].items())
        ]
        table = pd.DataFrame(rows, columns=["id", "caption", "times_shown", "times_skipped"])
        write_atomically(folder / "exposures.parquet", lambda part: table.to_parquet(part, index=False))
        pd.Series(state["skipped"], dtype=int).to_json(folder / "skipped.json", indent=2)
        if state["skipped"]:
            print(
                f"skipped while streaming: {', '.join(f'{n:,} {why}' for why, n in state['skipped'].items())}"
            )


def gathered(part: tuple) -> list[tuple]:
    """Of all ranks, on the first; on the others their own."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [part]
    parts = [None] * torch.distributed.get_world_size() if torch.distributed.get_rank() == 0 else None
    torch.distributed.gather_object(part, parts)
    return parts or [part]


def summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter()))


def joined(captions: Iterable[dict[str, str]]) -> Iterable[tuple[str, str]]:
    return (pair for part in captions for pair in part.items())
