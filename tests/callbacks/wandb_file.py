"""Read the records of an offline W&B run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7  # bytes of LevelDB's log format, in which a run is kept


def records(path: Path) -> Iterator[Record]:
    """Those of a `run-*.wandb` file: 7 bytes of W&B's, then blocks of parts (crc, length, type; content)."""
    data, position, whole = path.read_bytes(), HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # no part begins so near to a block's end
            position += BLOCK - position % BLOCK
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        whole += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(whole)
            whole = b""


def read_run(folder: Path) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """The run, its config and its logged rows, of the one offline run below `folder`."""
    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    run, config, rows = None, {}, []
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "config":
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            items = record.history.item
            rows.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            )
    return run, config, rows
