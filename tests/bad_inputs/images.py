# ruff: noqa: E501  (a row a line)
"""Images and shards that are damaged, or that would fill a memory or leave their folder."""

import bz2
import gzip
import lzma
import os
import struct
import tarfile
import zlib
from functools import partial
from pathlib import Path

from data.__main__ import inspect
from data.images.stored import MAX_BYTES
from tests.bad_inputs import Bad, Group
from tests.bad_inputs.prompts import DEEP
from tests.data.image_files import encoded, noise, tar_of, write_folder

GOOD = {"good.png": noise(1), "good.txt": b"good"}
SKIPPED = "skipped 'a': unreadable images: "
HUGE = "skipped 'a': too large images: Image size (... pixels) exceeds limit of ... pixels, could be ..."


# Images, each beside a good one


def image(what: str, name: str, content: bytes, line: str) -> Bad:
    return Bad(what, GOOD | {name: content, "a.txt": b"a"}, ".", line)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, more: bytes = b"") -> bytes:
    """A PNG whose header promises these pixels, and that has hardly any."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def wide_jpeg() -> bytes:
    whole = noise(0, "jpeg")
    size = whole.index(b"\xff\xc0") + 5
    return whole[:size] + struct.pack(">HH", 65500, 65500) + whole[size + 4 :]


def wide_webp() -> bytes:
    size = struct.pack("<I", 16383)[:3]
    return b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + size + size


def huge_file(folder: Path) -> None:
    write_folder(folder, GOOD | {"a.txt": b"a"})
    os.truncate(os.open(folder / "a.png", os.O_CREAT | os.O_WRONLY), MAX_BYTES + 1)


def linked(target: str, folder: Path) -> None:
    write_folder(folder, GOOD | {"a.txt": b"a"})
    (folder / "a.png").symlink_to(target)


ZEROS = zlib.compress(bytes(10**7))
CUT = {  # half a file of each format
    "PNG": ("png", "image file is truncated"), "JPEG": ("jpg", "image file is truncated (... bytes not processed)"),
    "WebP": ("webp", "could not create decoder object"), "GIF": ("gif", "image file is truncated (...)"),
    "BMP": ("bmp", "image file is truncated (...)"), "AVIF": ("avif", "cannot identify image file"),
}  # fmt: skip
IMAGES = Group("Images", "python -m data inspect {}", lambda *args: inspect(list(args)), [
    *(image(f"half a {form}", f"a.{name}", (whole := noise(0, form.lower()))[: len(whole) // 2], SKIPPED + why)
      for form, (name, why) in CUT.items()),
    *(image(what, name, content, f"{SKIPPED}cannot identify image file") for what, name, content in (
        ("nothing", "a.png", b""), ("a web page", "a.jpg", b"<html>404</html>"), ("an SVG", "a.png", b"<svg/>"),
        ("a TIFF", "a.png", encoded(form="tiff")), ("a PostScript program", "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("a JPEG's beginning", "a.jpg", b"\xff\xd8\xff"), ("no pixels", "a.png", png(0, 5)),
    )),
    *(image(what, name, content, HUGE) for what, name, content in (
        ("a PNG of 10 gigapixels", "a.png", png(100_000, 100_000)),
        ("a JPEG of 4 gigapixels", "a.jpg", wide_jpeg()), ("a WebP of 16384 x 16384", "a.webp", wide_webp()),
        ("a GIF of 65535 x 65535", "a.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;"),
    )),
    image("a PNG of 90 megapixels", "a.png", png(9_500, 9_500), "skipped 'a': too large images: 9500 x 9500 pixels, the limit is 89,478,485"),
    image("a text of 10 MB, compressed", "a.png", png(8, 8, chunk(b"zTXt", b"k\0\0" + ZEROS)), f"{SKIPPED}Decompressed data too large for ..."),
    image("a colour profile of 10 MB, compressed", "a.png", png(8, 8, chunk(b"iCCP", b"k\0\0" + ZEROS)), f"{SKIPPED}Decompressed data too large for ..."),
    Bad("a file of more than 1 GiB", huge_file, ".", f"{SKIPPED}a.png has 1,073,741,825 bytes, the limit is 1,073,741,824"),
    Bad("a link to itself", partial(linked, "a.png"), ".", f"{SKIPPED}[Errno 40] Too many levels of symbolic links: 'a.png'"),
    Bad("a link to a file that is no image", partial(linked, "/etc/passwd"), ".", f"{SKIPPED}cannot identify image file"),
])  # fmt: skip


# Shards, each beside a good one


def whole() -> bytes:
    """A shard of one image."""
    return tar_of({"a.png": noise(0), "a.txt": b"a"})


def shard(what: str, content: bytes, line: str, name: str = "a.tar") -> Bad:
    return Bad(what, {"good.tar": tar_of(GOOD), name: content}, ".", line)


def broken(what: str, content: bytes, why: str, name: str = "a.tar") -> Bad:
    return shard(what, content, f"{name} breaks off, what came after is lost: {why}", name)


def with_header(size: int, **headers: str) -> bytes:
    """The shard, with another size in its first header or with PAX headers before it."""
    member = tarfile.TarInfo("a.png")
    member.size, member.pax_headers = size, headers
    return member.tobuf(tarfile.PAX_FORMAT if headers else tarfile.GNU_FORMAT) + whole()[512:]


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(200) + content[middle + 200 :]


def chain() -> bytes:
    """A thousand extended headers, one for the other."""
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 512
    return (member.tobuf(tarfile.USTAR_FORMAT) + b"13 path=a.png\n".ljust(512, b"\0")) * 1000 + whole()


def links(folder: Path) -> None:
    """A hard link to a member and a symbolic one out of the folder, with their captions."""
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name, target in (("b.png", "good.png"), ("c.png", "/etc/passwd")):
            member = tarfile.TarInfo(name)
            member.type = tarfile.LNKTYPE if name == "b.png" else tarfile.SYMTYPE
            member.linkname = target
            archive.addfile(member)
    (folder / "good.tar").write_bytes(tar_of(GOOD))


def bomb(folder: Path) -> None:
    """A compressed shard with an image of 1 GiB of zeros, of which this is the header and the beginning."""
    member = tarfile.TarInfo("a.png")
    member.size = MAX_BYTES + 1
    (folder / "a.tar.gz").write_bytes(gzip.compress(member.tobuf() + bytes(10_000)))
    (folder / "good.tar").write_bytes(tar_of(GOOD))


def sample(what: str, described: bytes, line: str) -> Bad:
    """Of a JSON file beside an image."""
    return shard(what, tar_of({"a.png": noise(0), "a.json": described}), f"skipped 'a': {line}")


SPARSE = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "9"}
SHARDS = Group("Shards", "python -m data inspect {}", IMAGES.read, [
    Bad("a shard that is not there", {}, "no.tar", "error: no file matches 'no.tar'"),
    Bad("a range without end", {}, "{0..3.tar", "error: Unbalanced braces: '{0..3.tar'"),
    broken("nothing", b"", "it is no tar"),
    broken("a web page", b"<html>404</html>" * 99, "it is no tar"),
    broken("half a shard", whole()[:1500], "a.png is cut"),
    broken("half of a .tar.gz", gzip.compress(whole())[:-3000], "Compressed file ended before the end-of-stream marker was reached", "a.tar.gz"),
    broken("a damaged .tar.gz", damaged(gzip.compress(whole())), "...", "a.tar.gz"),
    broken("half of an .xz that is called .tar", lzma.compress(whole())[:2000], "Compressed file ended before ..."),
    broken("a damaged .xz that is called .tar", damaged(lzma.compress(whole())), "..."),
    broken("a damaged .bz2 that is called .tar", damaged(bz2.compress(whole())), "..."),
    broken("a member of 1 TiB", with_header(2**40), "a.png is cut"),
    broken("a member of 2^70 bytes", with_header(2**70), "a.png is cut"),
    broken("a member of -1024 bytes", with_header(-1024), "a.png has -1024 bytes"),
    broken("a map of holes without numbers", with_header(9, **SPARSE, **{"GNU.sparse.map": "a,b"}), "invalid literal for int() ..."),
    broken("a chain of headers", chain(), "maximum recursion depth exceeded..."),
    broken("two shards in one", whole() * 2, "more follows its end mark"),
    Bad("links", links, ".", "a.tar: not used: 2 links to other members, such as ['b.png', 'c.png']"),
    Bad("a compressed image of more than 1 GiB", bomb, ".", "a.tar.gz: not used: 1 members of more than 1 GiB, such as ['a.png']"),
    shard("a name that leaves the folder, and steers the terminal", tar_of({"../../\x1b[2Ja.png": noise(2)}),
          "skipped '\\x1b[2Ja': without caption: it has .png"),
    shard("a name that is no UTF-8", tar_of({"\udcff.png": noise(2)}), "skipped '...': without caption: it has .png"),
    sample("JSON cut", b"{", "without caption: it has .png, .json"),
    sample("JSON of brackets without end", DEEP.encode(), "without caption: it has .png, .json"),
    sample("a caption that is an object", b'{"caption": {"en": "a"}}', "captions that are no text: it has .png, .json"),
    sample("a caption with a null character", b'{"caption": "a\\u0000b"}', "captions that are not UTF-8: it holds null characters"),
    sample("Latin-1", b'{"caption": "\xe9"}', "captions that are not UTF-8"),
    Bad("counts that are no numbers", {"a.tar": tar_of(GOOD), "a_stats.json": '{"count": "x"}'}, "a.tar",
        "a_stats.json is not img2dataset's: ..."),
])  # fmt: skip
