"""Every mitigation, imported: so that the command line knows them by class name."""

from callbacks.detour import Detour
from callbacks.dynamic_transition import DynamicTransition
from callbacks.mitigation import NoMitigation
from callbacks.static_transition import StaticTransition
from callbacks.two_pass_transition import TwoPassTransition

MITIGATIONS = (NoMitigation, StaticTransition, DynamicTransition, TwoPassTransition, Detour)
