"""Every mitigation, imported: so that the command line knows them by class name."""

from callbacks.mitigations.base import NoMitigation
from callbacks.mitigations.detour import Detour
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from callbacks.mitigations.two_pass_transition import TwoPassTransition

MITIGATIONS = (NoMitigation, StaticTransition, DynamicTransition, TwoPassTransition, Detour)
