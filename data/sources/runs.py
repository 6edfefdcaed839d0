"""Folders of `python -m infer predict` as training images: what a model made of its prompts.

So are the images of DreamBooth's prior preservation made: by the base model, from the class prompt.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.images.stored import WholeFile
from data.sources.rows import Row, Source, count_unused, file_id
from data.sources.tables import whole_parquet

TABLE = "samples.parquet"
NEEDED = {"prompt_id", "sample", "prompt", "image"}
FAILED = "failed or refused generations"


def is_run(folder: Path) -> bool:
    """Whether the folder has a table of generated images, by its columns; no images are stored in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not (folder / TABLE).is_file():
        return False
    try:
        schema = pq.read_schema(folder / TABLE)
    except (pa.ArrowException, OSError):
        return False
    return set(schema.names) >= NEEDED and not pa.types.is_nested(schema.field("image").type)


def open_run(folder: Path, skipped: Counter) -> Source:
    """Each image with its prompt; those that failed, or that a guard refused, are counted."""
    names = [*sorted(NEEDED), "failed_step", "refused"]
    with whole_parquet(folder / TABLE) as table:
        known = table.schema_arrow.names
        rows = table.read([name for name in names if name in known]).to_pylist()
    made = [row for row in rows if row.get("failed_step") is None and not row.get("refused")]
    kept = {row["image"] for row in made}
    count_unused(str(folder), FAILED, [row["image"] for row in rows if row["image"] not in kept], skipped)
    return Source("images of a predict run", generated(folder, made), len(made))


def generated(folder: Path, rows: list[dict[str, Any]]) -> Iterator[Row]:
    """A path that leads out of the folder counts as a missing image."""
    for row in rows:
        path = (folder / str(row["image"])).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
        key = file_id(f"{row['prompt_id']}-{row['sample']}")
        yield Row(key, WholeFile(str(path)) if inside else None, row["prompt"])
