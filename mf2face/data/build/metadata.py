"""Removes EXIF, XMP, comments, thumbnails and appended bytes from JPEG and PNG files; the pixels stay."""

from collections.abc import Iterator


_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a segment: TEM and restarts
# Frames, tables and restart intervals. Adobe's segment (APP14) names the colours.
_JPEG_KEPT = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD, 0xEE}
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"  # without a thumbnail
_PNG_START, _PNG_KEPT = b"\x89PNG\r\n\x1a\n", (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def without_metadata(content: bytes) -> bytes | None:
    """The same compressed pixels; None if it is neither a JPEG nor a PNG, or is cut off.

    A stored orientation is removed too: compare what both files show before one replaces the other.
    """
    try:
        if content[:2] == b"\xff\xd8":
            return b"".join(_jpeg_parts(content))
        if content[:8] == _PNG_START:
            return b"".join(_png_parts(content))
    except (ValueError, IndexError):
        return None
    return None


def _jpeg_parts(content: bytes) -> Iterator[bytes]:
    yield b"\xff\xd8"
    place = 2
    while True:
        if content[place] != 0xFF:
            raise ValueError("no marker")
        while content[place + 1] == 0xFF:  # fill bytes
            place += 1
        marker, start = content[place + 1], place
        if marker == _END:
            yield b"\xff\xd9"
            return
        place += 2
        if marker in _ALONE:
            continue
        length = int.from_bytes(content[place : place + 2], "big")
        if length < 2 or place + length > len(content):
            raise ValueError("a segment is cut off")
        segment = content[start : place + length]
        place += length
        if marker == 0xE0 and segment[4:9] == b"JFIF\0":
            yield _JFIF
        elif marker in _JPEG_KEPT:
            yield segment
        if marker == _SCAN:
            start, place = place, _end_of_scan(content, place)
            yield content[start:place]


def _end_of_scan(content: bytes, place: int) -> int:
    """Where the next marker begins that is no restart and no stuffed byte."""
    while (place := content.find(b"\xff", place)) >= 0:
        if content[place + 1] != 0 and content[place + 1] not in _ALONE:
            return place
        place += 2
    raise ValueError("the scan is cut off")


def _png_parts(content: bytes) -> Iterator[bytes]:
    yield _PNG_START
    place = len(_PNG_START)
    while True:
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        end = place + 12 + length
        if len(kind) < 4 or end > len(content):
            raise ValueError("a chunk is cut off")
        if kind in _PNG_KEPT:
            yield content[place:end]
        if kind == b"IEND":
            return
        place = end


__all__ = ["without_metadata"]
