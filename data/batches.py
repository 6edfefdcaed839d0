"""Lists of a given size, from any iterable."""

from collections.abc import Iterable, Iterator
from itertools import islice


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
