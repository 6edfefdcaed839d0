"""Files that are downloaded once and kept, with their checksums."""

import hashlib
import re
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch

from data.files import one_line, sha256_of


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def check_sha256(sha256: str | None) -> None:
    """ValueError unless it is a whole checksum, or none."""
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"a sha256 is 64 hexadecimal digits: not {sha256!r}")


def verify(path: str | Path, sha256: str | None) -> None:
    """ValueError where the file has another checksum."""
    check_sha256(sha256)
    if sha256 is not None and (found := sha256_of(path)) != sha256.lower():
        raise ValueError(f"{path} has the sha256 {found}, not {sha256.lower()}: it is another file")


def place_of(url: str) -> Path:
    """Where a URL's file is kept: under torch.hub's folder, apart from other URLs' files of that name."""
    name = Path(urlparse(url).path).name or "file"
    return Path(torch.hub.get_dir(), "attraction_basin", hashlib.sha256(url.encode()).hexdigest()[:8], name)


def fetch(url: str, sha256: str | None = None) -> Path:
    """The URL's file, downloaded if it is not there yet; it is whole or absent.

    FileNotFoundError where it cannot be had, ValueError where its checksum is another.
    """
    check_sha256(sha256)
    path = place_of(url)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), sha256 and sha256.lower())
        except (OSError, HTTPException) as error:
            raise FileNotFoundError(
                f"cannot download {url} ({one_line(error)}): put the file at {path}, or give a path to it"
            ) from error
        except RuntimeError as error:  # torch.hub's, of the checksum
            raise ValueError(f"{url}: {one_line(error)}") from error
    verify(path, sha256)
    return path
