"""Ranges of options that jsonargparse has no type for: the parser checks them and shows them in --help."""

import math

from jsonargparse.typing import restricted_number_type

FiniteFloat = restricted_number_type("FiniteFloat", float, [(">", -math.inf), ("<", math.inf)])
Share = restricted_number_type("Share", float, [(">", 0), ("<=", 1)])  # (0, 1]
ShareBelowOne = restricted_number_type("ShareBelowOne", float, [(">=", 0), ("<", 1)])  # [0, 1)
Correlation = restricted_number_type("Correlation", float, [(">=", -1), ("<", 1)])  # [-1, 1)
