"""Base class of the mitigations: a Lightning callback that is also a guidance rule of the denoising loop."""

import inspect
from typing import Any

import lightning.pytorch as pl

from infer.denoising.hooks import GuidanceRule


class Mitigation(pl.Callback, GuidanceRule):
    """Put one among the trainer's callbacks, and `predict_step` hands it to the loop.

    Each argument of the constructor is kept as the attribute of the same name. `calibrated` are those that
    `python -m infer calibrate` can measure.
    """

    calibrated: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Class and settings, as the run folder records them."""
        arguments = inspect.signature(type(self)).parameters
        settings = {name: plain(getattr(self, name)) for name in arguments if name not in ("args", "kwargs")}
        return {"class_path": f"{type(self).__module__}.{type(self).__name__}", "init_args": settings}

    def forget(self) -> None:
        """Release models, embeddings and whatever else it holds of a run; `teardown` calls it."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.forget()

    def contents(self) -> dict[str, str | None]:
        """Fingerprints of the files that it reads, by argument: they may change under their names."""
        return {}


def plain(value: Any) -> Any:
    """The value as YAML knows it: the parser's types of numbers (PositiveInt) are classes of their own."""
    if isinstance(value, Mitigation):
        return value.identity()
    kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return value if kind is None else kind(value)


class NoMitigation(Mitigation):
    """Ordinary classifier-free guidance."""
