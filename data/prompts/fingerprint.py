"""Whether a source of prompts is what it was: a digest of its files."""

import json
import os
from pathlib import Path

from data.files import digest, remembered_sha256
from data.remote import is_remote, present
from data.sources.captions_file import captions_file
from data.sources.layouts import with_options
from data.sources.rows import files_below, matching_files
from data.sources.shards import SHARD_SUFFIXES


def source_fingerprint(source: str) -> str:
    """A digest of a source's options and of the names and contents of the files that `load_prompts` reads.

    Raises FileNotFoundError for a file that is not there.
    """
    location, options = with_options(source)
    if location.startswith("hf:") and not is_remote(location):
        return digest(source)[:12]
    path = Path(location)
    if is_remote(location):
        files = [present(file) for file in matching_files(location)]
    elif path.is_dir():
        run = path / "exposures.parquet"
        files = [run] if run.exists() else files_below(path, Path.is_file)
    elif location.endswith((*SHARD_SUFFIXES, ".parquet")):
        files = [Path(file) for file in matching_files(location)]
    elif path.exists():
        files = [path]
    else:
        raise FileNotFoundError(f"no prompt file {source!r}")
    if file := options.get("captions"):
        files.append(captions_file(file, path))
    contents = []
    for file in files:
        inside = file.is_relative_to(path) and file != path
        contents += [os.fsencode(file.relative_to(path) if inside else file.name), remembered_sha256(file)]
    return digest(json.dumps(options, sort_keys=True), *contents)[:12]
