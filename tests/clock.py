"""A clock that runs only while the test says so, in the place of the one that plans measure with."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest


class Clock:
    """Seconds pass in the functions that `takes` has patched, and nowhere else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.seconds, self.monkeypatch = 0.0, monkeypatch
        monkeypatch.setattr("infer.plan.clock.time", SimpleNamespace(perf_counter=lambda: self.seconds))

    def takes(self, owner: Any, name: str, seconds: Callable[..., float]) -> None:
        """Calls of `owner.name` take what `seconds` makes of their arguments."""
        function = getattr(owner, name)

        def slow(*args: Any, **options: Any) -> Any:
            self.seconds += seconds(*args)
            return function(*args, **options)

        self.monkeypatch.setattr(owner, name, slow)
