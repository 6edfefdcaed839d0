"""Show what training data holds before anything is trained on it.

  python -m data inspect data/emoji/shards
  python -m data inspect "laion/{00000..00009}.tar" --sheet outputs/laion.png
  python -m data inspect "laion_10k?captions=laion_combined_captions.json" imagenette2/train
  python -m data inspect "laion/{00000..00009}.tar?captions=blip.json"
  python -m data inspect "hf:owner/name?split=train&image=img&caption=text"
  python -m data copy outputs/stp s3://bucket/stp       # and back; what is there already stays

`inspect` prints the layout, how many images can be used and why others cannot, sizes, captions, and pictures
that come more than once, also scaled or encoded anew.
--sheet draws up to 48 of the images with their captions. --debug shows the traceback behind an error.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from data.cli import run

SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def sheet_path(name: str) -> Path:
    if Path(name).suffix.lower() not in SHEET_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{name!r} is no picture: end it in {', '.join(SHEET_SUFFIXES)}")
    return Path(name)


def inspect(args: list[str]) -> None:
    """Print what training data holds."""
    parser = argparse.ArgumentParser(prog="python -m data inspect", description=inspect.__doc__)
    parser.add_argument("source", nargs="+", help="as in training: see data/README.md")
    parser.add_argument(
        "--sheet", type=sheet_path, metavar="FILE.png", help="draw up to 48 images with their captions"
    )
    options = parser.parse_args(args)

    from tqdm import tqdm

    from data.inspect.contact_sheet import MOST, write_sheet
    from data.inspect.inspection import Inspection

    inspection = Inspection(MOST if options.sheet else 0)
    for source in options.source:
        inspection.read(source, partial(tqdm, unit=" images", disable=None))
    print_tables(inspection)
    if not len(inspection):
        raise ValueError(f"no captioned image in {', '.join(options.source)}")
    if options.sheet:
        write_sheet(inspection.samples(), options.sheet)
        print(f"contact sheet: {options.sheet}")


def copy(args: list[str]) -> None:
    """Copy a folder, such as a run's, to an object store or back; what is there already stays."""
    parser = argparse.ArgumentParser(prog="python -m data copy", description=copy.__doc__)
    parser.add_argument("source", help="folder or URL, such as s3://bucket/run")
    parser.add_argument("target", help="URL or folder")
    options = parser.parse_args(args)
    from data.copies import copy_folder

    copied, kept = copy_folder(options.source, options.target)
    print(f"{copied:,} files copied, {kept:,} there already: {options.target}")


def print_tables(inspection) -> None:
    """Text from the data is escaped, so that it is not taken for markup."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from tqdm import tqdm

    from data.files import printable
    from data.sources.rows import clean

    def shown(text: str) -> str:
        return escape(printable(clean(text)))

    console = Console()
    sources = Table("source", "layout", "usable images", title="sources")
    for source, layout, count in inspection.layouts:
        sources.add_row(shown(source), shown(layout), f"{count:,}")
    images = Table(title="images and captions", show_header=False)
    bar = partial(tqdm, desc="compare", total=len(inspection), unit=" images", disable=None)
    for name, value in inspection.rows(bar):
        images.add_row(name, shown(value))
    console.print(sources, images)
    for title, counts in (("left out", inspection.skipped), ("img2dataset's counts", inspection.shards)):
        if counts:
            table = Table(title=title, show_header=False)
            for name, count in counts.most_common():
                table.add_row(shown(name), f"{count:,}")
            console.print(table)


if __name__ == "__main__":
    sys.exit(run("python -m data", __doc__.strip(), {"inspect": inspect, "copy": copy}, sys.argv[1:]))
