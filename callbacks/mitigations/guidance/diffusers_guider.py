"""Any two-prediction guider of diffusers as the ordinary guidance of this project's loop."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from callbacks.mitigations.guidance.ordinary_guidance import OrdinaryGuidance, per_sample
from data.files import one_line
from infer.denoising.hooks import DenoisingStep, Request
from infer.models.weights import no_warnings

PREDICTIONS = ["pred_cond", "pred_uncond"]
FAILS = "MagnitudeAwareGuidance"  # on images; the class MaMBoG is the same rule


def guider_names() -> list[str]:
    """The guiders of the installed diffusers that mix a conditional and an unconditional prediction."""
    from diffusers import guiders

    kinds = {name: kind for name, kind in vars(guiders).items() if inspect.isclass(kind)}
    return sorted(
        name
        for name, kind in kinds.items()
        if getattr(kind, "_input_predictions", None) == PREDICTIONS and name != FAILS
    )


class DiffusersGuider(OrdinaryGuidance):
    """A guider of diffusers in place of u + s (c - u), after a transition or on its own.

    With d = c - u, per sample, on the model's output (noise or v), as diffusers' own pipelines use them:

    - ClassifierFreeGuidance with guidance_rescale phi: the mix brought to the deviation of c by the share phi
      (Lin et al., WACV 2024, arXiv:2305.08891, section 3.4).
    - AdaptiveProjectedGuidance, APG (Sadat et al., ICLR 2025, arXiv:2410.02416): momentum on d, its norm
      clipped, its part along c times eta; AdaptiveProjectedMixGuidance: CFG first, APG later.
    - ClassifierFreeZeroStarGuidance, CFG-Zero* (arXiv:2503.18886): u times <c, u> / ||u||^2; prediction 0 for
      the first zero_init_steps.
    - TangentialClassifierFreeGuidance, TCFG (arXiv:2503.18137): u projected on the first right singular
      vector of [c; u].
    - FrequencyDecoupledGuidance, FDG (arXiv:2506.19713): a scale for each level of a Laplacian pyramid; needs
      kornia.

    A guider's memory begins at a sample's transition; its count of steps, start and stop are those of the
    run. Costs two evaluations a step.

    Args:
        guider: class in diffusers.guiders.
        options: of the guider; guidance_scale is the run's, unless it is given here.
    """

    def __init__(self, guider: str = "ClassifierFreeGuidance", options: dict[str, Any] | None = None):
        self.guider, self.options = guider, options
        if guider not in guider_names():
            raise ValueError(
                f"no guider {guider!r} of two predictions in diffusers; there are {', '.join(guider_names())}"
            )
        takes = inspect.signature(self.kind).parameters
        if unknown := sorted({*(options or {})} - {*takes}):
            raise ValueError(f"{guider} has no option {unknown[0]!r}; it takes {', '.join(takes)}")

    @property
    def kind(self) -> type:
        from diffusers import guiders

        return getattr(guiders, self.guider)

    def make(self, guidance_scale: float) -> Any:
        """A new guider; ValueError where it cannot be, such as for a library that it needs."""
        own = "guidance_scale" in inspect.signature(self.kind).parameters
        options = ({"guidance_scale": guidance_scale} if own else {}) | (self.options or {})
        try:
            with no_warnings():
                return self.kind(**options)
        except (ImportError, TypeError, ValueError) as error:
            raise ValueError(f"{self.guider}: {one_line(error)}") from error

    def check(self, timesteps: Sequence[float], guidance_scale: float) -> None:
        self.make(guidance_scale)

    def check_requests(self, pipe: Any, requests: Sequence[Request]) -> None:
        still = getattr(self.make(1.0), "zero_init_steps", 0)
        if still and pipe.scheduler.config.prediction_type == "epsilon":
            raise ValueError(
                f"{self.guider} predicts 0 for the first {still} steps, which stands still only where a "
                "model predicts v: set options.zero_init_steps to 0 for this one, which predicts noise"
            )

    def forget(self) -> None:
        self._made: Any = None

    def begin(self, batch_size: int, device: torch.device) -> None:
        self.forget()

    def combine(self, step: DenoisingStep, prediction: Tensor) -> Tensor:
        """A guider remembers whole batches: rows that are not its own have d = 0 there."""
        if self._made is None:
            self._made = self.make(step.guidance_scale)
        own = per_sample((step.scale == step.guidance_scale).to(prediction.device), prediction)
        u = step.unconditional.float()  # norms and singular values need more than half precision
        c = torch.where(own, step.conditional.float(), u)
        self._made.set_state(step.index, len(step.timesteps), step.timestep)
        self._made.prepare_inputs({})  # at the first step it makes the guider's memory
        guided = self._made.forward(pred_cond=c, pred_uncond=u).pred
        return torch.where(own, guided.to(prediction.dtype), prediction)
