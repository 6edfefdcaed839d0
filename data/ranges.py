"""Ranges of options that jsonargparse has no type for: the parser checks them and shows them in --help."""

from jsonargparse.typing import restricted_number_type

Share = restricted_number_type("Share", float, [(">", 0), ("<=", 1)])  # (0, 1]
ShareBelowOne = restricted_number_type("ShareBelowOne", float, [(">=", 0), ("<", 1)])  # [0, 1)
Correlation = restricted_number_type("Correlation", float, [(">=", -1), ("<", 1)])  # [-1, 1)
