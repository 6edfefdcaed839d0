"""Base class of the mitigations: a Lightning callback that is also a guidance rule of the denoising loop."""

import inspect
from typing import Any

import lightning.pytorch as pl

from infer.denoise import GuidanceRule


class Mitigation(pl.Callback, GuidanceRule):
    """Put one among the trainer's callbacks and `predict_step` hands it to the loop.

    Each argument of the constructor is kept as the attribute of the same name.
    """

    def identity(self) -> dict[str, Any]:
        """Class and settings, as the run folder records them."""
        arguments = inspect.signature(type(self)).parameters
        settings = {name: getattr(self, name) for name in arguments if name not in ("args", "kwargs")}
        return {"class_path": f"{type(self).__module__}.{type(self).__name__}", "init_args": settings}


class NoMitigation(Mitigation):
    """Ordinary classifier-free guidance."""


def check_timestep(timestep: int) -> None:
    """Timesteps of the trained noise schedule run from 999 (noise) to 0 (image)."""
    if not 0 <= timestep <= 999:
        raise ValueError(f"a transition timestep must be in 0..999, not {timestep}")


def check_guidance_before(guidance_before: float, guidance_scale: float) -> None:
    """Before the transition something else must happen than after it."""
    if guidance_before == guidance_scale:
        raise ValueError(
            f"guidance_before equals guidance_scale ({guidance_scale}): the mitigation would do nothing"
        )
