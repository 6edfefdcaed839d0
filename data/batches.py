"""Lists of a given size: batch after batch, or some items of all."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def spread(items: list[Any], count: int | None) -> list[Any]:
    """At most `count` items, evenly from the first to the last; None: all."""
    import numpy as np

    positions = np.linspace(0, len(items) - 1, min(count or len(items), len(items))).round().astype(int)
    return [items[position] for position in positions]
