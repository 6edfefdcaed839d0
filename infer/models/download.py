"""Files of URLs, downloaded once and kept, with their checksums."""

import re
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch

from data.files import digest, one_line, redacted, sha256_of
from infer.models.hub import one_at_a_time


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def check_sha256(sha256: str | None) -> None:
    """ValueError unless it is a whole checksum, or None."""
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"a sha256 is 64 hexadecimal digits: not {sha256!r}")


def verify(path: str | Path, sha256: str | None) -> None:
    """ValueError where the file has another checksum."""
    check_sha256(sha256)
    if sha256 is not None and (actual := sha256_of(path)) != sha256.lower():
        raise ValueError(f"{path} has the sha256 {actual}, not {sha256.lower()}: it is another file")


def download_path(url: str) -> Path:
    """Where a URL's file is kept: in torch.hub's folder, apart from the files of other URLs."""
    name = Path(urlsplit(url).path).name or "file"
    return Path(torch.hub.get_dir(), "attraction_basin", digest(url)[:8], name)


def fetch(url: str, sha256: str | None = None) -> Path:
    """The URL's file, downloaded if it is not there yet; the file is whole or absent.

    Raises FileNotFoundError where the file cannot be downloaded, ValueError for another checksum.
    """
    check_sha256(sha256)
    path = download_path(url)
    with one_at_a_time(url):
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(url, str(path), sha256 and sha256.lower())
            except (OSError, HTTPException) as error:
                raise FileNotFoundError(
                    f"cannot download {redacted(url)} ({one_line(error)}): put the file at {path}, "
                    "or give a path to it"
                ) from error
            except RuntimeError as error:  # torch.hub's, of the checksum
                raise ValueError(f"{redacted(url)}: {one_line(error)}") from error
    verify(path, sha256)
    return path
