"""JPEG files that were cut and closed again: decoders show a grey or blurred rest, without an error."""

import io
import re
from collections import defaultdict

import numpy as np
from PIL import Image

FRAMES = range(0xC0, 0xC3)  # with Huffman codes; arithmetic coding leaves out its last bytes itself
SCAN, END = 0xDA, 0xD9
# markers that end the data of a scan: not a stuffed 255, and not a restart
AFTER_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
MORE = np.random.default_rng(0).integers(0, 255, 64, np.uint8).tobytes()  # data for a decoder that lacks some


def is_cut(encoded: bytes, small: Image.Image) -> bool:
    """Whether a JPEG's data end before its last block.

    A decoder that lacks data takes what is put before the end mark for the rest, and its image changes; one
    that is done skips it. To decode twice takes time, so a file of one scan is only tried if its last pixels
    are alike, as those of missing blocks are. Of a progressive one the scans must also give all bits of the
    first component (ITU-T T.81, G.1).

    Args:
        encoded: the file, which decodes without an error.
        small: the image decoded in grey at an eighth of its size.
    """
    frame, scans, end = structure(encoded)
    if frame not in FRAMES or not scans:
        return False
    if frame == 0xC2 and not complete(scans):
        return True
    last = np.asarray(small)[-1, -2:]
    if len(scans) == 1 and (last != last[0]).any():
        return False
    longer = encoded[:end] + MORE + encoded[end:]
    parts = (Image.open(io.BytesIO(each), formats=["JPEG"]) for each in (encoded, longer))
    with next(parts) as image, next(parts) as other:
        if len(scans) == 1:
            for each in (image, other):
                each.draft("L", (1, 1))
        return image.tobytes() != other.tobytes()


def structure(encoded: bytes) -> tuple[int, list[bytes], int]:
    """The frame's kind (its marker's second byte), each scan's parameters, and where the last scan ends."""
    frame, scans, position = 0, [], 2
    while position + 4 <= len(encoded) and encoded[position] == 0xFF and encoded[position + 1] != END:
        marker, size = encoded[position + 1], int.from_bytes(encoded[position + 2 : position + 4])
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        content = encoded[position + 4 : position + 2 + size]
        position += 2 + size
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker
        elif marker == SCAN:
            scans.append(content)
            found = AFTER_SCAN.search(encoded, position)
            position = found.start() if found else len(encoded)
    return frame, scans, position


def complete(scans: list[bytes]) -> bool:
    """Whether progressive scans give all 64 coefficients of the first component to their last bit."""
    first, bits = scans[0][1], defaultdict(lambda: 16)  # bits that are still missing, by coefficient
    for scan in scans:
        count = scan[0]
        if first in scan[1 : 1 + 2 * count : 2]:
            start, stop, approximation = scan[1 + 2 * count : 4 + 2 * count]
            for coefficient in range(start, stop + 1):
                bits[coefficient] = min(bits[coefficient], approximation & 15)
    return all(bits[coefficient] == 0 for coefficient in range(64))
