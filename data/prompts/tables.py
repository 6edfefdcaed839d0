"""Rows of prompts from files that hold many things besides: COCO's captions JSON, and parquet tables."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def is_prompt_parquet(source: str) -> bool:
    """Whether this is one whole parquet file without a column of images: only its texts can be meant."""
    path = Path(source)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    from data.sources.columns import holds_images

    try:
        return not any(holds_images(field.type) for field in parquet.read_schema(path))
    except ArrowException:
        return False


def coco_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One numbered row per image of COCO's captions (`captions_val2017.json`): its first caption.

    The id is that of the image, as all captions of an image describe the same. ValueError for another file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        captions = [(entry["image_id"], entry["caption"]) for entry in content["annotations"]]
        first: dict[Any, str] = {}
        for image, caption in captions:
            first.setdefault(image, caption)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        wrong = "no captions of COCO: it needs annotations with an image_id and a caption each"
        raise ValueError(f"{path}: {wrong}; a list of prompts is read from a .jsonl file") from error
    for number, (image, caption) in enumerate(first.items(), 1):
        yield number, {"caption": caption, "id": image}


def parquet_rows(
    path: Path, known: tuple[str, ...], texts: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows under lower-case names; of a list of captions the first counts, NaN is no value.

    Args:
        path: a parquet file, such as COCO's captions or the prompts of a data set.
        known: names of the columns that are read; `captions` is read as `caption`.
        texts: those that hold prompts; ValueError where the file has none of them.
    """
    import pyarrow.parquet as parquet

    from data.sources.tables import whole_parquet

    file = parquet.ParquetFile(path)
    names = {name: name.lower().replace("captions", "caption") for name in file.schema_arrow.names}
    wanted = {name: known_as for name, known_as in names.items() if known_as in known}
    if not set(wanted.values()) & set(texts):
        raise ValueError(f"{path}: no column {', '.join(texts)} among {[*names]}")
    number = 0
    with whole_parquet(path):
        for batch in file.iter_batches(columns=[*wanted]):
            for row in batch.to_pylist():
                number += 1
                yield number, {wanted[name]: plain(value) for name, value in row.items()}


def plain(value: Any) -> Any:
    """The first of a list, None for NaN, any other value itself."""
    value = next(iter(value), None) if isinstance(value, list) else value
    return None if value != value else value
