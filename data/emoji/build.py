"""Icon sets of the npm registry -> webdataset shards in img2dataset's form, the same bytes every time.

A sample is three members: `<set>_<name>.webp` (64x64 on white, lossless), `.txt` (the caption) and `.json`
(caption, set, name, licence, author, version). The caption is the icon's name with hyphens as spaces.
"""

import gzip
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import resvg_py
import webdataset as wds
from PIL import Image
from tqdm import tqdm

RESOLUTION = 64
VERSIONS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "fluent-emoji-flat": "1.2.6",
    "emojione": "1.2.3",
    "fluent-emoji": "1.2.7",
}
FLUENT_TONE = re.compile(r"-(light|medium-light|medium|medium-dark|dark)$")
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'width="{size}" height="{size}" viewBox="{left} {top} {width} {height}">{body}</svg>'
)


def download(icon_set: str, folder: Path) -> Path:
    """The .tgz of `@iconify-json/<icon_set>` at its pinned version, fetched with npm unless it is there."""
    archive = folder / f"iconify-json-{icon_set}-{VERSIONS[icon_set]}.tgz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        package = f"@iconify-json/{icon_set}@{VERSIONS[icon_set]}"
        subprocess.run(
            ["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    return archive


def read_package(archive: Path) -> tuple[dict, dict]:
    """The (icons, info) documents of one npm package; nothing is unpacked to disk."""
    with tarfile.open(archive) as package:
        return tuple(json.load(package.extractfile(f"package/{name}.json")) for name in ("icons", "info"))


def is_kept(icon_set: str, name: str, icon: dict) -> bool:
    """Drop hidden icons and skin-tone variants: they differ from their parent by a shade."""
    tone = "skin-tone" in name or (icon_set.startswith("fluent-emoji") and FLUENT_TONE.search(name))
    return not (icon.get("hidden") or tone)


def render(icon: dict, icon_set: dict, size: int = RESOLUTION) -> Image.Image:
    """One icon as RGB on white. Box and offset are the icon's, else its set's, else Iconify's defaults."""
    box = {
        key: icon.get(key, icon_set.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    }
    svg = SVG.format(size=size, body=icon["body"], **box)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    image = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGBA").resize((size, size))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def samples(icons: dict, info: dict, version: str) -> Iterator[dict]:
    """Each kept icon as a webdataset sample of bytes."""
    icon_set = icons["prefix"]
    kept = sorted(name for name, icon in icons["icons"].items() if is_kept(icon_set, name, icon))
    for name in tqdm(kept, desc=icon_set, unit="icon"):
        image = io.BytesIO()
        render(icons["icons"][name], icons).save(image, "webp", lossless=True, quality=100, method=6)
        caption = name.replace("-", " ")
        about = {
            "caption": caption,
            "set": icon_set,
            "name": name,
            "licence": info["license"]["spdx"],
            "author": info["author"]["name"],
            "version": version,
        }
        yield {
            "__key__": f"{icon_set}_{name}",
            "webp": image.getvalue(),
            "txt": caption.encode(),
            "json": json.dumps(about, sort_keys=True).encode(),
        }


def write_shard(target: IO[bytes], rows: Iterator[dict]) -> int:
    """Write a gzipped tar without a date or a user in it; the number of samples written."""
    count = 0
    with (
        gzip.GzipFile(filename="", fileobj=target, mode="wb", compresslevel=9, mtime=0) as packed,
        wds.TarWriter(packed, encoder=False, mtime=0, user="", group="") as tar,
    ):
        for row in rows:
            tar.write(row)
            count += 1
    return count
