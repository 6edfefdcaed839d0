"""Count by id how often each image of a stream was really shown, and what could not be."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import torch


class StreamedExposures(pl.Callback):
    """`exposures.parquet` at the end of fit: id, caption, times_shown; `skipped.json`: {reason: how often}.

    Exact on several ranks and after resumes. `caption` is that of the last time. Images of one id in several
    shards are counted together. Held in memory: ids and captions of what was shown.
    """

    def __init__(self) -> None:
        self.shown: Counter[str] = Counter()
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
        self.captions.update(zip(batch["id"], batch["caption"], strict=True))

    def state_dict(self) -> dict:
        """Called on all ranks."""
        parts = gathered((dict(self.shown), dict(self.skipped), self.captions))
        shown, skipped, captions = zip(*parts, strict=True)
        return {"shown": summed(shown), "skipped": summed(skipped), "captions": dict(joined(captions))}

    def load_state_dict(self, state_dict: dict) -> None:
        self.shown, self.skipped = Counter(state_dict["shown"]), Counter(state_dict["skipped"])
        self.captions = state_dict["captions"]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, folder = self.state_dict(), Path(trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        rows = [(key, state["captions"][key], count) for key, count in sorted(state["shown"].items())]
        table = pd.DataFrame(rows, columns=["id", "caption", "times_shown"])
        table.to_parquet(folder / "exposures.parquet", index=False)
        pd.Series(state["skipped"], dtype=int).to_json(folder / "skipped.json", indent=2)
        if state["skipped"]:
            print(
                f"skipped while streaming: {', '.join(f'{n:,} {why}' for why, n in state['skipped'].items())}"
            )


def gathered(part: tuple) -> list[tuple]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [part]
    parts: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts


def summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter()))


def joined(captions: Iterable[dict[str, str]]) -> Iterable[tuple[str, str]]:
    return (pair for part in captions for pair in part.items())
