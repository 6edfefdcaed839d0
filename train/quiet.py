"""Silence messages of other libraries that no user of these commands can act on, each by its text."""

import logging
import warnings

WARNINGS = (
    "The '.*_dataloader' does not have many workers",
    "The number of training batches",
    "You're resuming from a checkpoint that ended before the epoch ended",
    "Checkpoint directory .* exists and is not empty",
    "Experiment logs directory .* exists and is not empty",
    "Found .* module\\(s\\) in eval mode at the start of training",
    "You defined a `validation_step` but have no `val_dataloader`",
    "You passed in a `val_dataloader` but have no `validation_step`",
    "Trying to infer the `batch_size` from an ambiguous collection",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


def quiet() -> None:
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: "Tip:" not in record.getMessage())
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=rf"\W*{text}")
