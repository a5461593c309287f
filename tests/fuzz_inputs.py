"""Damaged inputs for `test_fuzz.py`: how files are spoiled, and drawn images and videos in many formats to spoil."""

import contextlib
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mf2face.data.synthetic.faces import draw_example


Spoil = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Case:
    """make: writes the input below a scratch folder; what it returns is given to the kind's `answer`.

    rule: `same`, the answer of the undamaged input or a refusal; `finite`, any finite answer or a refusal, where the
    damage may change what is said (a pixel, a weight without checksum); `accept`, the undamaged answer alone.
    names: of these a refusal must name one: the file or the field.
    """

    label: str
    make: Callable[[Path], Any]
    rule: str
    names: tuple[str, ...] = ()


def byte_damages(
    rng: random.Random, size: int, *, flips: int, cuts: int, zeros: int = 2, end: int | None = None
) -> Iterator[tuple[str, str, Spoil]]:
    """(label, what it is, spoil): bits flipped, the end cut off, zeros, bytes inserted or lost, bytes behind the end.

    end: flips lie before this byte, for instance in a header.
    """
    for _ in range(flips):
        places = [rng.randrange(min(end or size, size)) for _ in range(rng.choice((1, 1, 1, 3, 16)))]
        bits = [1 << rng.randrange(8) for _ in places]
        yield f"flip {places[:3]}", "flip", lambda content, p=places, b=bits: flipped(content, p, b)
    for _ in range(cuts):
        length = rng.choice(
            (rng.randrange(size), rng.randrange(min(size, 64)), size - 1 - rng.randrange(min(size, 40)))
        )
        yield f"cut to {length} of {size}", "cut", lambda content, n=length: content[:n]
    for _ in range(zeros):
        start, length = rng.randrange(size), rng.choice((4, 64, 512))
        yield f"zeros from {start}", "flip", lambda c, s=start, n=length: c[:s] + bytes(len(c[s : s + n])) + c[s + n :]
        yield f"bytes lost at {start}", "flip", lambda c, s=start, n=length: c[:s] + c[s + n // 4 :]
        yield f"bytes put in at {start}", "flip", lambda c, s=start, n=length: c[:s] + b"\xa5" * (n // 4) + c[s:]
    if zeros:
        yield "bytes behind the end", "same", lambda content: content + b"\0trailing" * 9


def flipped(content: bytes, places: list[int], bits: list[int]) -> bytes:
    changed = bytearray(content)
    for place, bit in zip(places, bits, strict=True):
        changed[place % len(changed)] ^= bit
    return bytes(changed)


TEXT_DAMAGES: dict[str, Spoil] = {
    "empty": lambda c: b"",
    "blanks": lambda c: b" \n ",
    "null": lambda c: b"null",
    "list": lambda c: b"[]",
    "number": lambda c: b"3",
    "text": lambda c: b'"x"',
    "UTF-16": lambda c: c.decode().encode("utf-16"),
    "UTF-8 with mark": lambda c: b"\xef\xbb\xbf" + c,
    "latin-1": lambda c: c.replace(b"e", b"\xe9", 1),
    "late latin-1": lambda c: c[:-20] + c[-20:].replace(b'"', b'\xe9"', 1),
    "comma at the end": lambda c: c.rstrip().rstrip(b"}") + b",}",
    "deep": lambda c: b"[" * 100_000,
    "deep field": lambda c: c.replace(b":", b": " + b'{"a":' * 20_000, 1),
    "NUL": lambda c: c[: len(c) // 2] + b"\0" + c[len(c) // 2 :],
    "binary": lambda c: bytes(range(256)) * 4,
    "half": lambda c: c[: len(c) // 2],
    "all but the end": lambda c: c.rstrip()[:-1],
    "twice": lambda c: c + c,
    "long number": lambda c: c.replace(b": ", b": " + b"9" * 5000, 1),
}

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 100_000, 10**30, 0.25, -0.5, float("nan"), float("inf"), "", "x", "1"),
    *([], ["x"], [None], [0, 0, 0], [[1.0]], {}, {"x": 1}, {"height": -1}, "\ud800"),
)


def fields_of(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of every value of a JSON document; of a list its first value alone."""
    children = (
        content.items() if isinstance(content, dict) else enumerate(content[:1] if isinstance(content, list) else ())
    )
    for name, value in children:
        yield (*path, name)
        yield from fields_of(value, (*path, name))


def value_at(content: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        content = content[name]
    return content


def with_value(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = json.loads(json.dumps(content))
    value_at(changed, path[:-1])[path[-1]] = value
    return changed


def json_type(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return type(value).__name__
    return "number" if isinstance(value, int | float) else type(value).__name__


def json_damages(rng: random.Random, content: Any, each: int) -> Iterator[tuple[str, str, Any, str]]:
    """(label, rule, document, field): each field with `each` values of other types, and the field left out.

    Another value of the same type, and null for "not given", may rightly change the answer; a wrong type never.
    """
    for path in fields_of(content):
        old = value_at(content, path)
        field = next(str(name) for name in reversed(path) if not isinstance(name, int))
        where = ".".join(map(str, path))
        for value in rng.sample(VALUES, each):
            is_legal = value is None or old is None or json_type(value) == json_type(old)
            is_for_all = isinstance(old, list) and old and {json_type(old[0]), json_type(value)} == {"number"}
            rule = "finite" if is_legal or is_for_all else "same"  # one number may stand for one of each
            yield f"{where} = {json.dumps(value)[:40]}", rule, with_value(content, path, value), field
        if isinstance(path[-1], str):
            parent = json.loads(json.dumps(content))
            del value_at(parent, path[:-1])[path[-1]]
            yield f"{where} left out", "finite", parent, field


def face(index: int = 0, side: int = 96) -> Image.Image:
    return Image.fromarray(draw_example(index, seed=2, size=side)[0])


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def image_files() -> dict[str, bytes]:
    """One drawn face in the formats and modes that people have; by file name."""
    plain, other = face(), face(1)
    clear = plain.copy()
    clear.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (96, 1))))
    turned = Image.Exif()
    turned[0x0112] = 6
    floats = Image.fromarray(np.asarray(plain.convert("L"), np.float32))
    shorts = Image.fromarray(np.asarray(plain.convert("L"), np.uint16) * 257)
    return {
        "plain.jpg": encoded(plain, "JPEG"),
        "grey.jpg": encoded(plain.convert("L"), "JPEG"),
        "progressive.jpg": encoded(plain, "JPEG", progressive=True),
        "exif.jpg": encoded(plain, "JPEG", exif=turned),
        "cmyk.jpg": encoded(plain.convert("CMYK"), "JPEG"),
        "plain.png": encoded(plain, "PNG"),
        "grey.png": encoded(plain.convert("L"), "PNG"),
        "bits.png": encoded(plain.convert("1"), "PNG"),
        "palette.png": encoded(plain.quantize(64), "PNG"),
        "clear_palette.png": encoded(plain.quantize(64), "PNG", transparency=3),
        "clear.png": encoded(clear, "PNG"),
        "clear_grey.png": encoded(clear.convert("LA"), "PNG"),
        "shorts.png": encoded(shorts, "PNG"),
        "lossy.webp": encoded(plain, "WEBP"),
        "lossless.webp": encoded(clear, "WEBP", lossless=True),
        "moving.webp": encoded(plain, "WEBP", save_all=True, append_images=[other]),
        "plain.gif": encoded(plain, "GIF"),
        "moving.gif": encoded(plain, "GIF", save_all=True, append_images=[other, plain.resize((96, 96))]),
        "plain.bmp": encoded(plain, "BMP"),
        "grey.bmp": encoded(plain.convert("L"), "BMP"),
        "plain.tif": encoded(plain, "TIFF"),
        "lzw.tif": encoded(clear, "TIFF", compression="tiff_lzw"),
        "jpeg.tiff": encoded(plain, "TIFF", compression="jpeg"),
        "float.tif": encoded(floats, "TIFF"),
        "shorts.tif": encoded(shorts, "TIFF"),
        "lab.tif": encoded(Image.fromarray(np.full((96, 96, 3), 120, np.uint8), "LAB"), "TIFF"),
    }


def foreign_images() -> dict[str, bytes]:
    """What Pillow may read and people do not mean, called as if it were an image of theirs."""
    plain = face()
    found = {"postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\nshowpage\n%%EOF\n"}
    for kind, mode in {
        "ICO": "RGB",
        "PPM": "RGB",
        "TGA": "RGB",
        "PCX": "RGB",
        "SGI": "RGB",
        "PDF": "RGB",
        "DDS": "RGB",
        "JPEG2000": "RGB",
        "AVIF": "RGB",
        "ICNS": "RGBA",
        "XBM": "1",
        "MSP": "1",
        "IM": "RGB",
    }.items():
        with contextlib.suppress(OSError, KeyError):  # not every Pillow writes them all
            found[f"{kind.lower()}.png"] = encoded(plain.convert(mode), kind)
    return {**found, "page.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='96' height='96'/>", "text.jpg": b"no"}


def png(width: int, height: int, bits: int, colours: int, row: bytes | None = None) -> bytes:
    """A valid PNG of zeros, whatever its size, made without its pixels in memory."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    line = b"\0" + (row or bytes(-(-width * bits * channels // 8)))
    squeeze = zlib.compressobj(1)
    packed = b"".join([squeeze.compress(line) for _ in range(height)]) + squeeze.flush()
    palette = chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\0") if colours == 3 else b""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _webp(width: int, height: int) -> bytes:
    """A single colour needs no bit a pixel in lossless WebP: whatever size is written into its header holds."""
    small = bytearray(encoded(Image.new("RGBA", (16, 16), (90, 80, 70, 128)), "WEBP", lossless=True, exact=True))
    place = small.find(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", small, place)
    struct.pack_into("<I", small, place, bits & ~0xFFFFFFF | (width - 1) | (height - 1) << 14)
    return bytes(small)


def _jpeg(width: int, height: int, **options: Any) -> bytes:
    content = encoded(face(), "JPEG", **options)
    place = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    return content[: place + 5] + struct.pack(">HH", height, width) + content[place + 9 :]


def _tiff(width: int, height: int, mode: str, compression: str) -> bytes:
    return encoded(Image.new(mode, (width, height)), "TIFF", compression=compression)


def huge_images() -> dict[str, Callable[[], bytes]]:
    """Small files that announce, or hold, very many pixels."""
    made: dict[str, Callable[[], bytes]] = {
        f"{name}.png": lambda told=told: png(*told)
        for name, told in {
            **{"grey": (9000, 9000, 8, 0), "grey_alpha": (9000, 9000, 8, 4), "rgb": (9900, 9900, 8, 2)},
            **{"rgba": (9900, 9900, 8, 6), "shorts": (9900, 9900, 16, 0), "rgb_shorts": (6000, 6000, 16, 2)},
            **{"rgba_shorts": (7000, 7000, 16, 6), "bits": (10000, 9999, 1, 0), "palette": (9999, 10000, 8, 3)},
            **{"beyond": (10001, 10000, 8, 2), "grey_alpha_shorts": (8000, 8000, 16, 4)},
            **{"wide": (200_000, 20, 8, 2), "tall": (20, 200_000, 8, 6), "thin": (90_000_000, 1, 1, 0)},
        }.items()
    }
    made |= {"8000.webp": lambda: _webp(8000, 8000), "wide.webp": lambda: _webp(16383, 6000)}
    made |= {"beyond.webp": lambda: _webp(16383, 16383), "strip.webp": lambda: _webp(16383, 16)}
    made |= {
        "header.jpg": lambda: _jpeg(65500, 65500),
        "below.jpg": lambda: _jpeg(10000, 9900),
        "progressive.jpg": lambda: _jpeg(10000, 9900, progressive=True),
        "true.jpg": lambda: encoded(Image.new("L", (9900, 9900)), "JPEG"),
        "true_colour.jpg": lambda: encoded(Image.new("RGB", (8000, 8000)), "JPEG"),
        "true_cmyk.jpg": lambda: encoded(Image.new("CMYK", (6000, 6000)), "JPEG"),
        "canvas.gif": lambda: flipped_header(encoded(face(), "GIF"), 6, struct.pack("<HH", 65535, 65535)),
        "below.gif": lambda: flipped_header(encoded(face(), "GIF"), 6, struct.pack("<HH", 9900, 9900)),
        "header.bmp": lambda: flipped_header(encoded(face(), "BMP"), 18, struct.pack("<ii", 60000, 60000)),
        "negative.bmp": lambda: flipped_header(encoded(face(), "BMP"), 18, struct.pack("<ii", -96, -(2**31))),
        "deflate.tif": lambda: _tiff(9900, 9900, "L", "tiff_adobe_deflate"),
        "deflate_rgba.tif": lambda: _tiff(9000, 9000, "RGBA", "tiff_adobe_deflate"),
        "deflate_float.tif": lambda: _tiff(9000, 9000, "F", "tiff_adobe_deflate"),
        "fax.tif": lambda: _tiff(9900, 9900, "1", "group4"),
    }
    return made


def flipped_header(content: bytes, place: int, header: bytes) -> bytes:
    return content[:place] + header + content[place + len(header) :]


def odd_sizes() -> dict[str, bytes]:
    sizes = [(31, 46), (2400, 110), (16, 16), (15, 15), (1, 1), (17, 3000), (4000, 16), (1, 5000), (333, 333)]
    return {f"{w}x{h}.png": encoded(face().resize((w, h)), "PNG") for w, h in sizes}


def video_file(path: Path, codec: str, count: int = 12, size: tuple[int, int] = (96, 96)) -> bytes:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, size)
    for index in range(count):
        writer.write(cv2.resize(draw_example(index, seed=2)[0][..., ::-1], size))
    writer.release()
    return path.read_bytes()


def odd_files(folder: Path, ending: str) -> list[tuple[str, Callable[[], Any]]]:
    """What may stand where a file is expected; of a device or a pipe a reader may wait for ever."""
    path = folder / f"odd{ending}"
    return [
        ("pipe", lambda: os.mkfifo(path)),
        ("folder", lambda: path.mkdir()),
        ("link to itself", lambda: path.symlink_to(path)),
        ("link to nothing", lambda: path.symlink_to(folder / "nothing")),
        ("link to /dev/zero", lambda: path.symlink_to("/dev/zero")),
        ("zero bytes", lambda: path.write_bytes(b"")),
        ("text", lambda: path.write_text("no video\n" * 50)),
        ("image", lambda: path.write_bytes(encoded(face(), "PNG"))),
        ("zeros", lambda: path.write_bytes(bytes(5000))),
    ]
