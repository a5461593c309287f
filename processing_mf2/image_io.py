"""Images by their address: fetched only when the caller asks, within a total time, and never from where a redirect
sneaks into the caller's own network."""

import base64
import binascii
import io
import ipaddress
import os
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image, ImageCms


SECONDS = 30.0
"""That a download may take in all, connection and redirects included, unless the caller sets `timeout`."""

MOST_BYTES = 64 * 2**20


def is_address(image: Any) -> bool:
    return isinstance(image, str) and image.startswith(("http://", "https://"))


def download(url: str, name: str, timeout: float | None = None) -> bytes:
    """The content at `url`; a server that sends drop by drop is left when the time is over."""
    seconds = SECONDS if timeout is None else timeout
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < float("inf"):
        raise ValueError(f"timeout: got {timeout!r}, expected seconds above 0, or None for {SECONDS:g}")
    found: dict[str, Any] = {}

    def fetch() -> None:
        try:
            opener = urllib.request.build_opener(_Redirects(may_be_private=_is_private(urlsplit(url).hostname)))
            with opener.open(url, timeout=seconds) as response:
                content, said = response.read(MOST_BYTES + 1), response.headers.get("Content-Length", "")
            if said.isdigit() and len(content) < min(int(said), MOST_BYTES + 1):
                raise URLError(f"it broke off after {len(content)} of {said} bytes")
            found["content"] = content
        except (OSError, HTTPException, ValueError) as error:
            found["error"] = error

    # A timeout of a socket counts from the last byte, and none counts for the name's lookup.
    worker = threading.Thread(target=fetch, daemon=True)
    worker.start()
    worker.join(seconds)
    if "content" not in found:
        why = found.get("error", f"it took longer than {seconds:g} s")
        raise ValueError(f"{name}: {url!r:.300} could not be fetched ({why})") from found.get("error")
    if len(found["content"]) > MOST_BYTES:
        raise ValueError(f"{name}: {url!r:.300} is larger than {MOST_BYTES // 2**20} MiB; download the image first")
    return found["content"]


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, may_be_private: bool) -> None:
        self.may_be_private = may_be_private

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_address(newurl.lower()):
            raise URLError(f"it redirects to {newurl!r:.300}, which is no http address")
        if not self.may_be_private and _is_private(urlsplit(newurl).hostname):
            raise URLError(f"it redirects to the private address {newurl!r:.300}; give that address if you trust it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_private(host: str | None) -> bool:
    """Whether a name leads into this machine or its own network, by any of its addresses."""
    try:
        found = socket.getaddrinfo(host or "", None, type=socket.SOCK_STREAM)
    except OSError:  # nowhere, or only a proxy knows
        return False
    return any(not ipaddress.ip_address(entry[4][0].partition("%")[0]).is_global for entry in found)


try:
    import cv2
except ImportError:
    cv2 = None


BACKGROUND = 127.5
"""Mid grey stands wherever a picture says nothing: behind transparency, beyond its border, under a cutout."""

MIN_SIDE = 16
"""Pixels; a smaller picture cannot show a face."""

MOST_SLENDER = 200
"""Times as long as wide; resampling anything beyond to a crop would take any time and memory."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""What PIL may open. It knows many more, some of which start other programs (EPS) or decode without bounds."""

MOST_PIXELS = 51_000_000
"""Of an image whose decoding needs `_USUAL_BYTES` a pixel, or less; of others as many fewer as they need more."""

_USUAL_BYTES = 10  # measured: a progressive JPEG, in memory of its decoder, of PIL and of the result
_DECODED_BYTES = {
    "CMYK": 12,
    "WEBP": 20,
    "TIFF": 16,
    "I": 20,
    "F": 20,
    "I;16": 16,
    "I;16B": 16,
    "I;16L": 16,
    "float": 24,
}
_STRIP = 2**20  # pixels that are converted at once

_ORIENTATION = 0x0112  # in EXIF
# Of a JPEG: frames that every decoder reads, and the segments that change neither its colours nor its direction.
_FRAMES, _SCAN = (0xC0, 0xC1, 0xC2), 0xDA
_PLAIN_SEGMENTS = {bytes((0xFF, marker)) for marker in (*_FRAMES, 0xC4, 0xDB, 0xDD, 0xE0, 0xFE, _SCAN)}
_EXPECTED = (
    "a PIL image, a path, bytes, base64 text, {'bytes': ..., 'path': ...}, or a numpy array or torch tensor of shape "
    "(height, width), (height, width, channels) or (channels, height, width) with 1 to 4 channels"
)


def flatten_images(images: Any) -> list[Any]:
    """A single image, a list (also nested), or a 4-D array: to a flat list."""
    if isinstance(images, list | tuple):
        return [leaf for item in images for leaf in flatten_images(item)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def read_image(
    image: Any,
    *,
    name: str = "image",
    max_pixels: int = MOST_PIXELS,
    allow_url: bool = False,
    timeout: float | None = None,
) -> torch.Tensor:
    """(3, height, width) as the eye sees it, EXIF rotation applied: uint8, or float32 from 0 to 255 if bytes lose.

    Files and bytes (also as {"bytes": ..., "path": ...}, an undecoded row of `datasets`, as base64 text or a `data:`
    address) are read by PIL, of an animation the first frame; only `FORMATS`. The memory that decoding needs is limited
    before it begins: `max_pixels` are those of a JPEG or PNG, of WebP and TIFF it is half as many.
    An opened PIL image is taken at its current frame. Arrays: 8 bit as they are; unsigned 16 bit, and other integers if
    a value exceeds 255, divided by 257; floats as [0, 1] if no value exceeds 1 and as [0, 255] otherwise.
    """
    image = _resolve(image, name, allow_url, timeout)
    if isinstance(image, Image.Image):
        return _from_pil(image, name, max_pixels)
    if isinstance(image, np.ndarray | torch.Tensor):
        return _from_array(_to_tensor(image, name), name, max_pixels)
    if (quick := _plain_jpeg(image, name, max_pixels)) is not None:
        return torch.from_numpy(quick).permute(2, 0, 1)
    with _opened(image, name) as opened:
        return _from_pil(opened, name, max_pixels)


def image_size(image: Any, *, name: str = "image") -> tuple[int, int]:
    """Height and width as stored, before any EXIF rotation; of a file or bytes only the header is read."""
    image = _resolve(image, name, allow_url=False)
    if isinstance(image, Image.Image):
        return image.height, image.width
    if isinstance(image, np.ndarray | torch.Tensor):
        return tuple(_channels_first(_to_tensor(image, name), name).shape[1:])
    with _opened(image, name) as opened:
        return opened.height, opened.width


def _resolve(
    image: Any, name: str, allow_url: bool, timeout: float | None = None
) -> Image.Image | np.ndarray | torch.Tensor | Path | bytes:
    if isinstance(image, Mapping) and image and set(image) <= {"bytes", "path"}:
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if image is None:
            raise ValueError(f"{name}: got neither bytes nor a path, expected one of them")
    if is_address(image):
        if not allow_url:
            raise ValueError(
                f"{name}: got the address {image!r:.300}, but nothing is fetched from the network unless asked; pass "
                "allow_url=True, or download the image first"
            )
        return download(image, name, timeout)
    if isinstance(image, str) and image.startswith("data:"):
        return _from_base64(image.partition(",")[2], name)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            is_file = path.is_file()
        except (OSError, ValueError):  # longer than a name can be, or with a zero in it
            is_file = False
        if is_file:
            return path
        if isinstance(image, str) and len(image) >= _SHORTEST_BASE64 and not path.suffix:
            return _from_base64(image, name)
        raise FileNotFoundError(f"{name}: there is no file {str(path)!r:.300}")
    if isinstance(image, Image.Image | np.ndarray | torch.Tensor | bytes | bytearray):
        return image
    raise TypeError(f"{name}: got {type(image).__name__}, expected {_EXPECTED}")


_SHORTEST_BASE64 = 100  # characters; no image file is that small, and few paths are that long


def _from_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: {text!r:.60} is neither a file nor base64 text ({error})") from error


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """The image with its header read and its pixels not yet."""
    where, path = (f"{str(source)!r}", str(source)) if isinstance(source, Path) else ("the bytes", "")
    with open(source, "rb") if path else io.BytesIO(source) as file:
        if not file.read(1):
            raise ValueError(f"{name}: {where} holds zero bytes, expected an image file")
        try:
            opened = Image.open(file, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _pil_refuses(error, name) from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(
                f"{name}: {where} is not an image in a format that is read here ({', '.join(FORMATS)}); convert it, or "
                "pass an opened PIL image if you trust where it comes from"
            ) from error
        except Exception as error:  # a header that breaks off, or leads PIL astray
            raise ValueError(f"{name}: {where} could not be read as an image, it seems damaged ({error})") from error
        yield opened


def _pil_refuses(error: Exception, name: str) -> ValueError:
    return ValueError(
        f"{name}: PIL itself refuses an image of this size, whatever max_pixels is ({error}); shrink the image, or "
        "raise PIL.Image.MAX_IMAGE_PIXELS"
    )


def _plain_jpeg(source: Path | bytes, name: str, max_pixels: int) -> np.ndarray | None:
    """The pixels of a JPEG without EXIF or anything else that changes how it is read: by OpenCV, which decodes by the
    same library as PIL in two thirds of the time. `None`: PIL reads it, or says what is wrong with it."""
    if cv2 is None or (isinstance(source, Path) and source.suffix.lower() not in (".jpg", ".jpeg")):
        return None
    content = source.read_bytes() if isinstance(source, Path) else source
    size = _plain_jpeg_size(content)
    if size is None:
        return None
    _check_pixels(*size, name, max_pixels)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
    return pixels if pixels is not None and pixels.shape == (*size, 3) else None


def _plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    if content[:2] != b"\xff\xd8" or content[-2:] != b"\xff\xd9":  # not one, or cut off
        return None
    place, size = 2, None
    while content[place : place + 2] in _PLAIN_SEGMENTS:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == _SCAN:
            return size
        if marker in _FRAMES:
            bits, height, width, colours = struct.unpack(">BHHB", content[place + 4 : place + 10].ljust(6, b"\0"))
            if size is not None or bits != 8 or colours not in (1, 3):
                return None
            size = height, width
        place += 2 + length
    return None


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> torch.Tensor:
    _check_pixels(image.height, image.width, name, max_pixels, image.format, image.mode)
    try:
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _pil_refuses(error, name) from error
    except Exception as error:  # PIL's decoders raise whatever stopped them
        raise ValueError(f"{name}: the image is truncated or damaged ({error})") from error
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = _from_array(_to_tensor(np.asarray(image), name), name, max_pixels)
    else:
        pixels = torch.from_numpy(_rgb_bytes(image)).permute(2, 0, 1)
    return _upright(pixels, orientation)


def _rgb_bytes(image: Image.Image) -> np.ndarray:
    """(height, width, 3), in strips, so that no conversion needs another copy of the whole image."""
    rows = max(1, _STRIP // image.width)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in strip.info:
            rgba = torch.from_numpy(np.array(strip.convert("RGBA"))).permute(2, 0, 1)
            pixels[top : top + rows] = _on_background(rgba).permute(1, 2, 0).numpy()
            continue
        if strip.mode == "LAB":
            lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            strip = ImageCms.profileToProfile(strip, lab, rgb, outputMode="RGB")
        pixels[top : top + rows] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return pixels


def _upright(pixels: torch.Tensor, orientation: Any) -> torch.Tensor:
    """As EXIF's orientation (1 to 8) says that the camera was held."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 2)
    axes = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return pixels if axes is None else pixels.flip(axes)


def _to_tensor(array: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        if array.layout != torch.strided or array.is_meta:
            layout = str(array.layout).removeprefix("torch.")
            raise TypeError(
                f"{name}: got a {layout} tensor on {array.device}, expected one that holds every pixel (to_dense())"
            )
        return array.detach()
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name}: got an array of {array.dtype}, expected bytes, integers or floats")
    # torch wants the machine's own byte order, writable memory and no negative strides.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def _channels_first(array: torch.Tensor, name: str) -> torch.Tensor:
    shape = tuple(array.shape)
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and shape[0] > 4 and shape[2] <= 4:
        array = array.permute(2, 0, 1)
    if array.ndim != 3 or not 1 <= array.shape[0] <= 4:
        raise ValueError(f"{name}: got an array of shape {shape}, expected {_EXPECTED}")
    return array


def _from_array(array: torch.Tensor, name: str, max_pixels: int) -> torch.Tensor:
    array = _channels_first(array, name)
    _check_pixels(*array.shape[1:], name, max_pixels, "" if array.dtype == torch.uint8 else "float")
    array = _to_byte_range(array, name)
    if array.shape[0] == 2:
        array = torch.cat([array[:1].expand(3, -1, -1), array[1:]])
    return _on_background(array) if array.shape[0] == 4 else array.expand(3, -1, -1)


def _to_byte_range(array: torch.Tensor, name: str) -> torch.Tensor:
    if array.dtype == torch.uint8:
        return array
    if array.dtype == torch.bool:
        return array.to(torch.uint8) * 255
    if array.dtype.is_complex:
        raise ValueError(f"{name}: got values of type {array.dtype}, expected bytes, integers or floats")
    if array.dtype == torch.uint16:
        return array.to(torch.float32) / 257
    is_float = array.dtype.is_floating_point
    array = array.to(torch.float32)
    low, high = array.min().item(), array.max().item()
    limit = 255 if is_float else 65535
    if not (low >= 0 and high <= limit):  # also false for NaN
        raise ValueError(
            f"{name}: got values from {low:g} to {high:g}, expected 0 to 1 or 0 to 255 in a float array, 0 to 255 or 0 "
            "to 65535 in one of integers; an image that is already normalised must not be processed again"
        )
    if is_float:
        return array * 255 if high <= 1 else array
    return array / 257 if high > 255 else array


def _on_background(rgba: torch.Tensor) -> torch.Tensor:
    """Colours before mid grey, as bytes of bytes; in strips, for the arithmetic is of floats."""
    rgb, rows = torch.empty_like(rgba[:3]), max(1, _STRIP // rgba.shape[2])
    for top in range(0, rgba.shape[1], rows):
        part = rgba[:, top : top + rows].float()
        alpha = part[3:] / 255
        part = part[:3] * alpha + BACKGROUND * (1 - alpha)
        rgb[:, top : top + rows] = part if rgb.is_floating_point() else part.round_()
    return rgb


def _check_pixels(height: int, width: int, name: str, max_pixels: int, *kinds: str | None) -> None:
    """kinds: file format, mode of PIL, type of an array: the one that needs most memory a pixel counts."""
    a_pixel = max(_DECODED_BYTES.get(kind, _USUAL_BYTES) for kind in (*kinds, None))
    most = max_pixels * _USUAL_BYTES // a_pixel
    if width * height > most:
        share = f" of this format, which needs {a_pixel} bytes a pixel to be decoded" if most < max_pixels else ""
        raise ValueError(
            f"{name}: got {width} x {height} pixels, expected at most {most:,} in all{share}; shrink the image, or "
            "raise max_pixels if you trust where it comes from"
        )
    _check_sides(height, width, name)


def _check_sides(height: int, width: int, name: str) -> None:
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"{name}: got {width} x {height} pixels, expected at least {MIN_SIDE} a side")
    if max(height, width) > MOST_SLENDER * min(height, width):
        raise ValueError(
            f"{name}: got {width} x {height} pixels, expected one side at most {MOST_SLENDER} times the other; cut out "
            "the part that shows the face"
        )


__all__ = ["download", "is_address"]
