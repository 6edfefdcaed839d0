"""Write the results of a run that has ended, and lost some of them, from its last checkpoint."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

RESULTS = ("EMA", "Exposures", "Export")  # callbacks, in this order


def write_results(trainer: Trainer, model: Any, data: Any, path: Path, step: int) -> None:
    """Restore the checkpoint of `step`, train nothing, and write the exposures and the exported model.

    Raises ValueError on several devices.
    """
    if trainer.world_size > 1:
        raise ValueError(
            f"{path.parent.parent} has ended, but results are missing: run the same command with "
            "--trainer.devices 1 --trainer.num_nodes 1 --trainer.strategy auto to write them"
        )
    trainer.fit_loop.epoch_loop.max_steps = step  # Lightning restores the state and has no step left
    trainer.fit(model, data, ckpt_path=str(path), weights_only=True)
    callbacks = [callback for callback in trainer.callbacks if type(callback).__name__ in RESULTS]
    for hook in ("on_train_start", "on_train_end"):
        for callback in callbacks:
            getattr(callback, hook)(trainer, model)
