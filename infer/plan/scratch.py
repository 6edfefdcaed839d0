"""A folder for what is measured, which does not stay."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from data.disk import full_disk_named


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A folder on the disk of the job's folder `out`, above it and not in it; removed after the block."""
    parents = out.absolute().parents
    where = next((path for path in parents if path.is_dir()), parents[-1])
    with TemporaryDirectory(prefix=".plan-", dir=where) as name, full_disk_named(Path(name)):
        yield Path(name)
