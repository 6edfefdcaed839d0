"""The transitions as guiders of diffusers' modular pipelines: `pipe.update_components(guider=...)`."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.hooks import DenoisingStep, GuidanceRule

PREDICTION_TYPES = ("epsilon", "v_prediction", "flow_prediction")
CONDITIONAL, UNCONDITIONAL = "pred_cond", "pred_uncond"
POSITION = {CONDITIONAL: 0, UNCONDITIONAL: 1}  # in the pipelines' pairs of inputs


def with_options_of(rule: type[GuidanceRule]) -> Callable:
    """An `__init__` that has the rule's own arguments among the guider's: its config then holds them all."""
    own, options = inspect.signature(TransitionGuidance.set_up).parameters, inspect.signature(rule).parameters
    first, last = ("self", "guidance_scale"), ("prediction_type", "enabled")
    signature = inspect.Signature(
        [*(own[name] for name in first), *options.values(), *(own[name] for name in last)]
    )

    def __init__(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        TransitionGuidance.set_up(**bound.arguments)

    __init__.__signature__ = signature
    return register_to_config(__init__)


class TransitionGuidance(BaseGuidance):
    """Classifier-free guidance u + s (c - u); a rule of this project decides s, per sample and step.

    The pipeline evaluates what the guider requests, whole batches at a time: only the unconditional
    prediction where s is 0 in every row, only the conditional one where it is 1, both where rows differ or
    the rule watches. The rule starts afresh with each run. Arguments: those of the rule, and

    Args:
        guidance_scale: the full scale.
        prediction_type: what the model predicts: epsilon, v_prediction, or flow_prediction (SD3, Flux, most
            later models). It matters where the rule watches noise predictions.
        enabled: False leaves the conditional prediction as it is.
    """

    _input_predictions = [CONDITIONAL, UNCONDITIONAL]
    rule_class: type[GuidanceRule]

    def __init_subclass__(cls, rule: type[GuidanceRule] | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if rule is not None:
            cls.rule_class, cls.__init__ = rule, with_options_of(rule)

    def set_up(
        self, guidance_scale: float = 7.5, prediction_type: str = "epsilon", enabled: bool = True,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(enabled=enabled)
        self._diffusers_load_id = "null|guider|null|null"  # without one, pipelines save and load without it
        self.guidance_scale, self.prediction_type = guidance_scale, prediction_type
        self.rule = self.rule_class(**options)
        check_visible(self.rule, prediction_type)
        self._needed: list[str] = []  # of the current step
        self._batch_size: int | None = None  # of the current run, once it is known

    @property
    def transition_timestep(self) -> Tensor | None:
        """Timestep at which each sample of the last run got the full scale, (B,).

        NaN where never, or where the gate gave it ordinary guidance from the start (`gated`).
        """
        if self._batch_size is None:
            return None
        passed = self.rule.transition_timestep()
        return passed.masked_fill(passed.isinf(), math.nan)

    @property
    def gated(self) -> Tensor | None:
        """Samples of the last run to which the gate gave ordinary guidance, (B,) bool."""
        return None if self._batch_size is None else self.rule.transition_timestep().isinf()

    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"transition_timestep": self.transition_timestep, "gated": self.gated}

    @property
    def num_conditions(self) -> int:
        """Of a run, not of a step: pipelines read it to decide whether to embed a negative prompt."""
        return 2 if self._enabled else 1

    @property
    def is_conditional(self) -> bool:
        """Of the model call that was prepared last; before the first one, as if it were conditional."""
        return not self._needed or self._needed[self._count_prepared - 1] == CONDITIONAL

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        t = float(timestep)
        if self._step is None or step <= self._step:
            self._batch_size, self._timesteps = None, []
            self._unit = 1000 if t <= 1 else 1  # some schedulers count from 1 to 0
            self._num_steps = max(num_inference_steps - step, 1)  # a second guider takes over midway
        self._timesteps.append(t * self._unit)
        super().set_state(step, num_inference_steps, timestep)

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        self.decide_needed(data.values())
        return [self._prepare_batch(data, POSITION[name], name) for name in self._needed]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        def read(name: str | tuple[str, str]) -> Any:
            return tuple(map(read, name)) if isinstance(name, tuple) else getattr(data, name, None)

        self.decide_needed(map(read, input_fields.values()))
        return [
            self._prepare_batch_from_block_state(input_fields, data, POSITION[name], name)
            for name in self._needed
        ]

    def decide_needed(self, inputs: Iterable[Any]) -> None:
        """Which predictions the step needs; from the model's inputs, of which those that differ are pairs."""
        if not self._enabled:
            self._needed = [CONDITIONAL]
            return
        pairs = [value for value in inputs if isinstance(value, tuple) and value[0] is not None]
        if not pairs or pairs[0][1] is None:  # the text comes first
            raise ValueError(
                "this run has no unconditional input to guide away from: pass negative_prompt, if only as ''"
            )
        if self._batch_size is None:
            self.begin(pairs[0][0])
        self._now = self.current_step()
        scale = self.scale()
        unconditional, conditional = self.rule.needs(self._now, scale) or (scale != 1, scale != 0)
        needed = {CONDITIONAL: conditional.any(), UNCONDITIONAL: unconditional.any()}
        self._needed = [name for name in POSITION if needed[name]]

    def begin(self, inputs: Tensor | list[Tensor]) -> None:
        """A run starts. Of its timesteps only the first is known: stand-ins fall from it to 0."""
        first = self._timesteps[0]
        self.rule.check(torch.linspace(first, 0, self._num_steps).tolist(), self.guidance_scale)
        self._batch_size = len(inputs)
        self.rule.begin(self._batch_size, inputs[0].device)

    def current_step(self) -> DenoisingStep:
        timestep, flow = self._timesteps[-1], self.prediction_type == "flow_prediction"
        return DenoisingStep(
            index=len(self._timesteps) - 1, timestep=timestep, timesteps=self._timesteps, latents=None,
            alpha=1 - timestep / 1000 if flow else math.nan, sigma=timestep / 1000 if flow else math.nan,
            prediction_type=self.prediction_type, guidance_scale=self.guidance_scale,
        )  # fmt: skip

    def scale(self) -> Tensor:
        full = torch.full((self._batch_size,), float(self.guidance_scale))
        return self.rule.guidance_scale(self._now, full)

    def __call__(self, data: list[Any]) -> GuiderOutput:
        return self.forward(**{getattr(batch, self._identifier_key): batch.noise_pred for batch in data})

    def forward(self, pred_cond: Tensor | None = None, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction; where one of the two was not evaluated, the other replaces it."""
        if not self._enabled:
            return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=None)
        conditional = pred_uncond if pred_cond is None else pred_cond
        unconditional = pred_cond if pred_uncond is None else pred_uncond
        if len(conditional) != self._batch_size:
            raise ValueError(f"{len(conditional)} predictions from inputs of {self._batch_size} samples")
        self._now.conditional, self._now.unconditional = conditional, unconditional
        self.rule.observe(self._now)
        scale = self.scale().to(conditional.device).view(-1, *[1] * (conditional.ndim - 1))
        self._now = None  # and its predictions
        if len(self._timesteps) == len(set(self._timesteps)) == self._num_steps:  # no step was taken twice
            self.check_again()
        guided = (unconditional + scale * (conditional - unconditional)).to(conditional.dtype)
        return GuiderOutput(pred=guided, pred_cond=conditional, pred_uncond=unconditional)

    def check_again(self) -> None:
        """At the last step, with the real timesteps."""
        try:
            self.rule.check(self._timesteps, self.guidance_scale)
        except ValueError as error:
            warnings.warn(f"{type(self).__name__}: {error}", stacklevel=2)


def check_visible(rule: GuidanceRule, prediction_type: str) -> None:
    """ValueError where the rule watches what a guider cannot see."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type {prediction_type!r}: there are {', '.join(PREDICTION_TYPES)}")
    gated = getattr(rule, "gate", None) is not None
    if prediction_type == "v_prediction" and (gated or rule.watched_space == "epsilon"):
        raise ValueError(
            "a guider does not know alpha_t, by which differences of v become those of the noise: "
            + ("leave out the gate" if gated else 'use watch="model_output"')
        )


class StaticTransitionGuidance(TransitionGuidance, rule=StaticTransition):
    __doc__ = f"{StaticTransition.__doc__}\nAs a guider: {TransitionGuidance.__doc__}"


class DynamicTransitionGuidance(TransitionGuidance, rule=DynamicTransition):
    __doc__ = f"{DynamicTransition.__doc__}\nAs a guider: {TransitionGuidance.__doc__}"
