"""Which layout a source of training data has: see `data.captioned.load_captioned` for all of them."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.remote import is_remote
from data.sources import captions_file, folders, kohya, runs, tables
from data.sources.beside import beside
from data.sources.rows import (
    ARCHIVES,
    NOT_READ,
    SPLITS,
    UNREAD_SUFFIXES,
    Source,
    count_unused,
    file_id,
    files_below,
    images_below,
    is_image,
    is_mask,
    matching_files,
)
from data.sources.shards import SHARD_SUFFIXES, is_shard, open_shards, shards_in

log = logging.getLogger(__name__)
OF_TABLES = ("split", "image", "caption", "label", "id")
OF_ALL = ("captions", "prefix")
FILE_NAME = "file_name"  # ?caption=file_name
EMPTY = "nothing that can be read"


def with_options(source: str) -> tuple[str, dict[str, str]]:
    """`PATH?name=value&name=value` apart; a `?` of an existing folder, or without `name=`, is the path's."""
    path, query = source, ""
    slashes = [match.end() for match in re.finditer("/", source)]
    there = max((end for end in slashes if Path(source[:end]).is_dir()), default=0)
    if not Path(source).exists() and (match := re.match(r"(.*?)\?(\w+=.*)$", source[there:])):
        path, query = source[:there] + match[1], match[2]
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    if empty := [name for name, value in options.items() if not value]:
        raise ValueError(f"{source!r}: the option {empty[0]!r} has no value")
    return path, options


def only(options: dict[str, str], known: tuple[str, ...], source: str) -> dict[str, str]:
    """The options; ValueError for one that this layout does not know."""
    if unknown := sorted(options.keys() - {*known, *OF_ALL}):
        raise ValueError(
            f"{source!r}: no option {unknown[0]!r} here, it takes {', '.join((*known, *OF_ALL))}"
        )
    return options


def open_source(source: str, skipped: Counter) -> Source:
    """Find the layout. FileNotFoundError for a source that is not there, ValueError for an unclear one."""
    path, options = with_options(source)
    prefix = options.pop("prefix", "")
    if "captions" not in options:
        opened = open_path(source, path, options, skipped)
    else:
        file = captions_file.captions_file(options["captions"], Path(path))
        if holds_image_files(Path(path)):
            only(options, (), source)
            count_aside(Path(path), files_below(Path(path)), skipped)
            opened = captions_file.open_captions(Path(path), file, skipped)
        else:
            opened = captions_file.with_captions(open_path(source, path, options, skipped), file, skipped)
    if not prefix:
        return opened
    return opened._replace(rows=(row._replace(id=file_id(prefix + row.id)) for row in opened.rows))


def open_path(source: str, path: str, options: dict[str, str], skipped: Counter) -> Source:
    if is_remote(path) and not path.endswith((*SHARD_SUFFIXES, ".parquet")):
        return open_store(source, path, options, skipped)
    if path.startswith("hf:") and not is_remote(path):
        return tables.open_hub(path, only(options, ("config", "revision", *OF_TABLES), source))
    folder = Path(path)
    if folder.is_dir():
        return open_folder(folder, options, skipped)
    if path.endswith(SHARD_SUFFIXES):
        only(options, (), source)
        return open_shards(matching_files(path), skipped)
    if path.endswith(".parquet"):
        files = tables.parquet_files(path)
        return tables.open_parquet(path, files, only(options, OF_TABLES, source))
    raise FileNotFoundError(
        f"data source {source!r} is neither a folder nor a shard pattern (*.tar, *.tar.gz), nor *.parquet, "
        "nor hf:owner/name"
    )


def open_store(source: str, path: str, options: dict[str, str], skipped: Counter) -> Source:
    """The shards, or else the parquet files, below a folder of an object store; ValueError without either."""
    files = matching_files(path)
    if shards := [file for file in files if is_shard(Path(file))]:
        only(options, (), source)
        return open_shards(shards, skipped)
    if parquet := [Path(file) for file in files if file.endswith(".parquet")]:
        return tables.open_parquet(path, parquet, only(options, OF_TABLES, source))
    raise ValueError(f"{source!r} has no shards and no parquet files: copy a folder of images to a disk")


def holds_image_files(folder: Path) -> bool:
    """Whether a folder's images are files, to which a captions file is matched by path, and not in tables."""
    if not folder.is_dir() or any((folder / name).exists() for name in tables.SAVED):
        return False
    files = tables.parquet_files(str(folder))
    if files and tables.has_image_column(files[0]):
        return False
    return bool(images_below(folder)) or not shards_in(folder)


def open_folder(folder: Path, options: dict[str, str], skipped: Counter) -> Source:
    """The first layout that fits, with counts of what it leaves aside; an EMPTY Source where none does."""
    where = str(folder)
    if any((folder / name).exists() for name in tables.SAVED):
        return tables.open_saved(folder, only(options, OF_TABLES, where))
    if runs.is_run(folder):
        only(options, (), where)
        return runs.open_run(folder, skipped)
    files = files_below(folder)
    images = [path for path in files if is_image(path)]
    count_aside(folder, files, skipped)
    shards = shards_in(folder)
    deeper = [path for path in files if is_shard(path) and path.parent != folder]
    count_unused(where, "shards in subfolders", deeper, skipped)
    if shards:
        only(options, (), where)
        count_unused(where, "images beside shards", images, skipped)
        return open_shards(shards, skipped)
    if images and options.get("caption") == FILE_NAME:
        only(options, ("caption",), where)
        return folders.open_file_names(folder, images)
    parquet = [path for path in files if path.suffix == ".parquet"]
    if parquet and (options or not images or tables.has_image_column(parquet[0])):
        count_unused(where, "images beside parquet files", images, skipped)
        return tables.open_parquet(where, parquet, only(options, OF_TABLES, where))
    if images and "caption" in options:
        raise ValueError(f"{where}: images in files take no ?caption= but {FILE_NAME}")
    only(options, (), where)
    metadata = folders.metadata_below(folder)
    if metadata and metadata[0].parent == folder:
        return folders.open_metadata(folder, metadata, skipped)
    if file := captions_file.find_captions(folder):
        return captions_file.open_captions(folder, file, skipped)
    loose = [path for path in images if path.parent == folder]
    root = kohya.find_root(folder, images)
    if root and all(beside(path) is None for path in loose):
        return kohya.open_kohya(folder, root, images, skipped)
    if loose:
        return folders.open_captions_beside(folder, skipped)
    if not images:
        return Source(EMPTY, iter(()), 0)
    tops = {path.relative_to(folder).parts[0] for path in images}
    if "train" in tops and tops <= set(SPLITS):  # else `train` is a class, beside `bus`
        if len(tops) > 1:
            log.warning("%s: only its folder 'train' is read, of %s", folder, sorted(tops))
        return open_folder(folder / "train", {}, skipped)
    if metadata:
        return folders.open_metadata(folder, metadata, skipped)
    return folders.open_nested(folder, images, skipped)


def count_aside(folder: Path, files: list[Path], skipped: Counter) -> None:
    """Count what no layout of files uses."""
    aside = {
        NOT_READ: [path for path in files if path.suffix[1:].lower() in UNREAD_SUFFIXES],
        "archives that are not read": [path for path in files if path.name.lower().endswith(ARCHIVES)],
        "masks of OneTrainer": [path for path in files if is_mask(path)],
        "latents cached by a trainer (.npz)": [path for path in files if path.suffix == ".npz"],
    }
    for reason, paths in aside.items():
        count_unused(str(folder), reason, paths, skipped)


def is_data(source: str) -> bool:
    """Whether `load_captioned` would find a layout here; nothing is downloaded to know it."""
    if source.startswith("hf:"):
        return True
    try:
        with unsaid():
            return open_source(source, Counter()).layout != EMPTY
    except FileNotFoundError:
        return False
    except ValueError:  # it exists, and `load_captioned` says what is wrong with it
        return True


@contextmanager
def unsaid() -> Iterator[None]:
    """Name nothing that is left aside: a check comes before `load_captioned`, which names it once."""
    sources = logging.getLogger("data.sources")
    level = sources.level
    sources.setLevel(logging.ERROR)
    try:
        yield
    finally:
        sources.setLevel(level)
