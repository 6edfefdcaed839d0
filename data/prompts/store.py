"""Prompts by the million: they lie in a file that is mapped into memory, not in lists."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property
from itertools import islice
from tempfile import NamedTemporaryFile

import numpy as np
import pyarrow as pa

from data.batches import in_batches
from data.prompts import Prompt, distinct, read_prompts

ROWS = 1 << 14  # in a batch of the file
SCHEMA = pa.schema([(name, pa.large_string()) for name in Prompt._fields])


class PromptStore(Sequence[Prompt]):
    """Prompts in a temporary Arrow file: one that is asked for is read, the others stay on the disk.

    The file has no name any more, so nothing is left of it when the process ends.
    """

    def __init__(self, prompts: Iterable[Prompt]):
        with NamedTemporaryFile(prefix="prompts-", suffix=".arrow") as file:
            with pa.ipc.new_file(file, SCHEMA) as writer:
                for batch in in_batches(prompts, ROWS):
                    columns = [pa.array(column, pa.large_string()) for column in zip(*batch, strict=True)]
                    writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            file.flush()
            reader = pa.ipc.open_file(pa.memory_map(file.name))
        self.batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self.count = sum(batch.num_rows for batch in self.batches)

    def first(self, limit: int | None) -> "PromptStore":
        """The first `limit` prompts; None: all."""
        shorter = copy(self)
        shorter.count = self.count if limit is None else min(self.count, limit)
        return shorter

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Prompt:
        if not 0 <= number < self.count:
            raise IndexError(number)
        batch, row = divmod(number, ROWS)
        return Prompt(*(column[row].as_py() for column in self.batches[batch].columns))

    def __iter__(self) -> Iterator[Prompt]:
        every = (zip(*(column.to_pylist() for column in batch.columns)) for batch in self.batches)  # noqa: B905
        return islice((Prompt(*row) for rows in every for row in rows), self.count)

    def ids(self) -> Iterator[str]:
        """The ids in order, without reading the texts."""
        every = (key for batch in self.batches for key in batch.column("id").to_pylist())
        return islice(every, self.count)

    @cached_property
    def hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the ids in ascending order, and the number of the prompt of each: 16 bytes a prompt."""
        hashes = np.fromiter(map(hash, self.ids()), np.int64, self.count)
        order = hashes.argsort(kind="stable")
        return hashes[order], order

    def numbers(self, keys: Sequence[str]) -> list[int]:
        """The position of the prompt with each of these ids; -1 where there is none."""
        values = [hash(key) for key in keys]
        places = np.searchsorted(self.hashes[0], values).tolist()
        return [self.number(*of) for of in zip(keys, values, places, strict=True)]

    def number(self, key: str, value: int, place: int) -> int:
        """The position of the prompt with this id, whose hash is this one, found first at `place`."""
        hashes, order = self.hashes
        while place < len(hashes) and hashes[place] == value:  # two ids may have one hash
            number = int(order[place])
            if self.batches[number // ROWS].column(0)[number % ROWS].as_py() == key:
                return number
            place += 1
        return -1

    def __getstate__(self) -> dict:
        """Another process hashes otherwise."""
        return {name: value for name, value in vars(self).items() if name != "hashes"}


def store_prompts(source: str) -> PromptStore:
    """The prompts of `load_prompts`, with the same errors, in a store."""
    return PromptStore(distinct(PromptStore(read_prompts(source)), source))
