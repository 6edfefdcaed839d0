"""Names of classes, and captions from them for images without others."""

import json
from typing import TYPE_CHECKING, Any

from data.sources.rows import clean

if TYPE_CHECKING:
    import pyarrow as pa

CLASS_PROMPT = "An image of {}"
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def readable(name: str) -> str:
    """A class in words: Imagenette's WordNet ids by name, and no underscores."""
    return clean(IMAGENETTE.get(name, name.replace("_", " ")))


def class_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """Names of the classes, by their numbers, of each column that is a `datasets.ClassLabel`.

    Hugging Face writes its types as JSON into the metadata of a schema, in parquet files too. Metadata
    that cannot be understood is ignored.
    """
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {}).items()
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {
        column: names
        for column, kind in features
        if column in schema.names
        and isinstance(kind, dict)
        and kind.get("_type") == "ClassLabel"
        and isinstance(names := kind.get("names"), list)
        and all(isinstance(name, str) for name in names)
    }


def named(cell: Any, names: list[str] | None) -> Any:
    """The name of a class by its number, None for one without a name, such as -1; without names the cell."""
    if names is None:
        return cell
    return readable(names[cell]) if isinstance(cell, int) and 0 <= cell < len(names) else None


def label_of(cell: Any, names: list[str] | None) -> str | None:
    """The name of a cell's class: by its number, or without names its text."""
    label = named(cell, names)
    return clean(label).strip() or None if isinstance(label, str) else None
