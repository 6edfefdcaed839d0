"""Which layout a source of training data has: see `data.captioned.load_captioned` for all of them."""

import logging
import re
from collections import Counter
from pathlib import Path

from data.sources import captions_file as layouts_captions
from data.sources import folders as layouts_folder
from data.sources import tables as layouts_tables
from data.sources.rows import SPLITS, Source, file_id, images_below
from data.sources.shards import SHARD_SUFFIXES, open_shards, shard_paths, shards_in

log = logging.getLogger(__name__)
OF_TABLES = ("split", "image", "caption", "label", "id")
OF_ALL = ("captions", "prefix")
EMPTY = "nothing that can be read"


def with_options(source: str) -> tuple[str, dict[str, str]]:
    """`PLACE?name=value&name=value` apart; a `?` without a name and `=` after it is part of a glob."""
    place, mark, query = source, "", ""
    if not Path(source).exists() and (match := re.match(r"(.*?)(\?)(\w+=.*)$", source)):
        place, mark, query = match.groups()
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    if empty := [name for name, value in options.items() if not value]:
        raise ValueError(f"{source!r}: the option {empty[0]!r} has no value")
    return place, options


def only(options: dict[str, str], known: tuple[str, ...], source: str) -> dict[str, str]:
    """The options; ValueError for one that this layout does not know."""
    if unknown := sorted(options.keys() - {*known, *OF_ALL}):
        raise ValueError(
            f"{source!r}: no option {unknown[0]!r} here, it takes {', '.join((*known, *OF_ALL))}"
        )
    return options


def open_source(source: str, skipped: Counter) -> Source:
    """Find the layout. FileNotFoundError for a source that is not there, ValueError for an unclear one."""
    place, options = with_options(source)
    prefix = options.pop("prefix", "")
    if "captions" not in options:
        found = open_place(source, place, options, skipped)
    else:
        file = layouts_captions.captions_file(options["captions"], Path(place))
        if holds_image_files(Path(place)):
            only(options, (), source)
            found = layouts_captions.open_captions(Path(place), file, skipped)
        else:
            found = layouts_captions.with_captions(open_place(source, place, options, skipped), file, skipped)
    if not prefix:
        return found
    return found._replace(rows=(row._replace(id=file_id(prefix + row.id)) for row in found.rows))


def open_place(source: str, place: str, options: dict[str, str], skipped: Counter) -> Source:
    if place.startswith("hf:"):
        return layouts_tables.open_hub(place, only(options, ("config", "revision", *OF_TABLES), source))
    folder = Path(place)
    if folder.is_dir():
        return open_folder(folder, options, skipped)
    if place.endswith(SHARD_SUFFIXES):
        only(options, (), source)
        return open_shards(shard_paths(place), skipped)
    if place.endswith(".parquet"):
        files = layouts_tables.parquet_files(place)
        return layouts_tables.open_parquet(place, files, only(options, OF_TABLES, source))
    raise FileNotFoundError(
        f"data source {source!r} is neither a folder nor a shard pattern (*.tar, *.tar.gz), nor *.parquet, "
        "nor hf:owner/name"
    )


def holds_image_files(folder: Path) -> bool:
    """Whether a folder's images are files, to which a captions file is matched by path, and not in tables."""
    if not folder.is_dir() or any((folder / name).exists() for name in layouts_tables.SAVED):
        return False
    tables = layouts_tables.parquet_files(str(folder))
    if tables and layouts_tables.has_image_column(tables[0]):
        return False
    return bool(images_below(folder)) or not shards_in(folder)


def open_folder(folder: Path, options: dict[str, str], skipped: Counter) -> Source:
    """The first layout that fits; a Source without rows where none does."""
    where = str(folder)
    if any((folder / name).exists() for name in layouts_tables.SAVED):
        return layouts_tables.open_saved(folder, only(options, OF_TABLES, where))
    if shards := shards_in(folder):
        only(options, (), where)
        return open_shards(shards, skipped)
    images, tables = images_below(folder), layouts_tables.parquet_files(where)
    if tables and (options or not images or layouts_tables.has_image_column(tables[0])):
        return layouts_tables.open_parquet(where, tables, only(options, OF_TABLES, where))
    only(options, (), where)
    metadata = layouts_folder.metadata_below(folder)
    if metadata and metadata[0].parent == folder:
        return layouts_folder.open_metadata(folder, metadata[:1], skipped)
    if file := layouts_captions.find_captions(folder):
        return layouts_captions.open_captions(folder, file, skipped)
    if any(path.parent == folder for path in images):
        return layouts_folder.open_captions_beside(folder, skipped)
    if not images:
        return Source(EMPTY, iter(()), 0)
    tops = {path.relative_to(folder).parts[0] for path in images}
    if "train" in tops and tops <= set(SPLITS):  # else `train` is a class, beside `bus`
        if len(tops) > 1:
            log.warning("%s: only its folder 'train' is read, of %s", folder, sorted(tops))
        return open_folder(folder / "train", {}, skipped)
    if metadata:
        return layouts_folder.open_metadata(folder, metadata, skipped)
    return layouts_folder.open_nested(folder, images, skipped)


def is_data(source: str) -> bool:
    """Whether `load_captioned` would find a layout here; nothing is downloaded to know it."""
    if source.startswith("hf:"):
        return True
    try:
        return open_source(source, Counter()).layout != EMPTY
    except FileNotFoundError:
        return False
    except ValueError:  # it is there, and what is wrong with it is for load_captioned to say
        return True
