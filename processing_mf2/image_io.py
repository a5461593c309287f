"""Reads files, bytes, base64, URLs and arrays to RGB pixels, within bounds of memory and time."""

import base64
import binascii
import io
import ipaddress
import os
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import URLError
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageCms


try:
    import cv2
except ImportError:
    cv2 = None


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""Formats that PIL may open. Others start programs (EPS) or decode without bounds."""

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".heic", ".heif")
"""File names that are looked for in a folder."""

BACKGROUND = 127.5
"""Mid grey: behind transparency, beyond the border, under a cutout."""

MIN_SIDE = 16
"""Pixels; a smaller image cannot show a face."""

MAX_ASPECT_RATIO = 200
"""Resampling a longer image to a crop would take unbounded time and memory."""

MOST_PIXELS = 51_000_000
"""Limit for an image that decodes at `_USUAL_BYTES` a pixel; other formats are limited to the same memory."""

_USUAL_BYTES = 10  # measured on a progressive JPEG: decoder, PIL and result together
_DECODED_BYTES = {
    **{"CMYK": 12, "WEBP": 20, "TIFF": 16, "HEIF": 20, "I": 20, "F": 20},
    **{"I;16": 16, "I;16B": 16, "I;16L": 16, "float": 24},
}
_STRIP = 2**20  # pixels that are converted at once
_SHORTEST_BASE64 = 100  # characters; no image file is that small, and few paths are that long
_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1")
_ORIENTATION = 0x0112  # EXIF tag

DOWNLOAD_SECONDS = 30.0
"""Total time of a download, connection and redirects included, unless the caller sets `timeout`."""

MOST_DOWNLOADED = 64 * 2**20

_EXPECTED = (
    "a PIL image, a path, bytes, base64 text, {'bytes': ..., 'path': ...}, or a numpy array or torch tensor of shape "
    "(height, width), (height, width, channels) or (channels, height, width) with 1 to 4 channels"
)


def is_tensor(value: Any) -> bool:
    """Without importing torch: where it is not imported, nobody has a tensor."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)
    return kind is not None and isinstance(value, kind)


def flatten_images(images: Any) -> list[Any]:
    """A single image, a (nested) list or a 4-D array as a flat list."""
    if isinstance(images, list | tuple):
        return [leaf for item in images for leaf in flatten_images(item)]
    if (isinstance(images, np.ndarray) or is_tensor(images)) and images.ndim == 4:
        return list(images)
    return [images]


def read_image(
    image: Any,
    *,
    name: str = "image",
    max_pixels: int = MOST_PIXELS,
    allow_url: bool = False,
    timeout: float | None = None,
) -> np.ndarray:
    """(3, height, width) with EXIF rotation applied: uint8, or float32 from 0 to 255 where bytes would lose precision.

    Files and bytes (also a row of an undecoded `datasets` image, base64 text or a `data:` URL) are decoded by PIL, the
    first frame of an animation; an opened PIL image is taken at its current frame. Decoding memory is bounded before it
    begins: `max_pixels` holds for JPEG and PNG, WebP and TIFF may have half as many.
    Arrays: uint8 unchanged; uint16, and other integers above 255, divided by 257; floats as [0, 1] if no value exceeds
    1, else as [0, 255].
    """
    image = _resolve(image, name, allow_url, timeout)
    if isinstance(image, Image.Image):
        return _from_pil(image, name, max_pixels)
    if isinstance(image, np.ndarray) or is_tensor(image):
        return _from_array(_to_array(image, name), name, max_pixels)
    with _opened(image, name) as (opened, file):
        return _from_pil(opened, name, max_pixels, file)


def image_size(image: Any, *, name: str = "image") -> tuple[int, int]:
    """Height and width as stored, before EXIF rotation; reads only the header of a file."""
    image = _resolve(image, name, allow_url=False)
    if isinstance(image, Image.Image):
        return image.height, image.width
    if isinstance(image, np.ndarray) or is_tensor(image):
        return _channels_first(_to_array(image, name), name).shape[1:]
    with _opened(image, name) as (opened, _):
        return opened.height, opened.width


def is_url(image: Any) -> bool:
    return isinstance(image, str) and image.startswith(("http://", "https://"))


def _resolve(image: Any, name: str, allow_url: bool, timeout: float | None = None) -> Any:
    if isinstance(image, Mapping) and image and set(image) <= {"bytes", "path"}:
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if image is None:
            raise ValueError(f"{name}: got neither bytes nor a path, expected one of them")
    if is_url(image):
        if not allow_url:
            raise ValueError(f"{name}: got the URL {image!r:.300}; download the image first, or pass allow_url=True")
        return download(image, name, timeout)
    if isinstance(image, str) and image.startswith("data:"):
        return _from_base64(image.partition(",")[2], name)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            is_file = path.is_file()
        except (OSError, ValueError):  # too long, or with a zero byte
            is_file = False
        if is_file:
            return path
        if isinstance(image, str) and len(image) >= _SHORTEST_BASE64 and not path.suffix:
            return _from_base64(image, name)
        raise FileNotFoundError(f"{name}: there is no file {str(path)!r:.300}")
    if isinstance(image, Image.Image | np.ndarray | bytes | bytearray) or is_tensor(image):
        return image
    raise TypeError(f"{name}: got {type(image).__name__}, expected {_EXPECTED}")


def _from_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: {text!r:.60} is neither a file nor base64 text ({error})") from error


def download(url: str, name: str, timeout: float | None = None) -> bytes:
    """The content at `url`, within a total time; redirects into a private network are refused."""
    seconds = DOWNLOAD_SECONDS if timeout is None else timeout
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < float("inf"):
        raise ValueError(f"timeout: got {timeout!r}, expected seconds above 0, or None for {DOWNLOAD_SECONDS:g}")
    result: dict[str, Any] = {}

    def fetch() -> None:
        try:
            opener = urllib.request.build_opener(_Redirects(may_be_private=_is_private(urlsplit(url).hostname)))
            with opener.open(url, timeout=seconds) as response:
                content, length = response.read(MOST_DOWNLOADED + 1), response.headers.get("Content-Length", "")
            if length.isdigit() and len(content) < min(int(length), MOST_DOWNLOADED + 1):
                raise URLError(f"it broke off after {len(content)} of {length} bytes")
            result["content"] = content
        except (OSError, HTTPException, ValueError) as error:
            result["error"] = error

    # A socket's timeout restarts with every byte and does not cover the name lookup.
    worker = threading.Thread(target=fetch, daemon=True)
    worker.start()
    worker.join(seconds)
    if "content" not in result:
        why = result.get("error", f"it took longer than {seconds:g} s")
        raise ValueError(f"{name}: {url!r:.300} could not be fetched ({why})") from result.get("error")
    if len(result["content"]) > MOST_DOWNLOADED:
        raise ValueError(f"{name}: {url!r:.300} is larger than {MOST_DOWNLOADED // 2**20} MiB; download it first")
    return result["content"]


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, may_be_private: bool) -> None:
        self.may_be_private = may_be_private

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_url(newurl.lower()):
            raise URLError(f"it redirects to {newurl!r:.300}, which is no http address")
        if not self.may_be_private and _is_private(urlsplit(newurl).hostname):
            raise URLError(f"it redirects to the private address {newurl!r:.300}; give that address if you trust it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_private(host: str | None) -> bool:
    """True if any address of the host lies in this machine or its own network."""
    try:
        entries = socket.getaddrinfo(host or "", None, type=socket.SOCK_STREAM)
    except OSError:  # unknown, or known to a proxy only
        return False
    return any(not ipaddress.ip_address(entry[4][0].partition("%")[0]).is_global for entry in entries)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """The image, with only its header read, and its file."""
    where = f"{str(source)!r}" if isinstance(source, Path) else "the bytes"
    with open(source, "rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        head = file.read(12)
        if not head:
            raise ValueError(f"{name}: {where} holds zero bytes, expected an image file")
        formats = (*FORMATS, "HEIF") if head[4:] in _HEIC and _reads_heic(f"{name}: {where}") else FORMATS
        try:
            opened = Image.open(file, formats=formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _pil_refuses(error, name) from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(
                f"{name}: {where} is not an image in a format that is read here ({', '.join(FORMATS)}); convert it, or "
                "pass an opened PIL image if you trust its source"
            ) from error
        except Exception as error:  # PIL raises anything on a damaged header
            raise ValueError(f"{name}: {where} could not be read as an image, it seems damaged ({error})") from error
        yield opened, file


def _reads_heic(what: str) -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        message = (
            f"{what} is a HEIC photograph, which needs pillow-heif: pip install pillow-heif; or convert it to JPEG"
        )
        raise ValueError(message) from error
    register_heif_opener()
    return True


def _pil_refuses(error: Exception, name: str) -> ValueError:
    return ValueError(
        f"{name}: PIL itself refuses an image of this size, whatever max_pixels is ({error}); shrink the image, or "
        "raise PIL.Image.MAX_IMAGE_PIXELS"
    )


def _from_pil(image: Image.Image, name: str, max_pixels: int, file: BinaryIO | None = None) -> np.ndarray:
    _check_size(image.height, image.width, name, max_pixels, image.format, image.mode)
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        pixels = None if file is None else _decode_jpeg(image, file)
        if pixels is None:
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _pil_refuses(error, name) from error
    except Exception as error:  # PIL's decoders raise anything
        raise ValueError(f"{name}: the image is truncated or damaged ({error})") from error
    if image.mode == "F" or image.mode.startswith("I"):
        return _upright(_from_array(_to_array(np.asarray(image), name), name, max_pixels), orientation)
    pixels = _rgb_bytes(image) if pixels is None else pixels
    return _upright(pixels.transpose(2, 0, 1), orientation)


def _decode_jpeg(image: Image.Image, file: BinaryIO) -> np.ndarray | None:
    """The pixels of a whole RGB or grey JPEG by OpenCV, in two thirds of PIL's time; `None`: PIL has to decode."""
    if cv2 is None or image.format != "JPEG" or image.mode not in ("RGB", "L") or "adobe" in image.info:
        return None
    file.seek(0)
    content = file.read()
    if not content.endswith(b"\xff\xd9"):  # cut short, which OpenCV would not say
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None
    return pixels if pixels is not None and pixels.shape == (image.height, image.width, 3) else None


def _rgb_bytes(image: Image.Image) -> np.ndarray:
    """(height, width, 3), converted in strips: no conversion copies the whole image."""
    rows = max(1, _STRIP // image.width)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in strip.info:
            rgba = np.asarray(strip.convert("RGBA")).transpose(2, 0, 1)
            pixels[top : top + rows] = _on_background(rgba).transpose(1, 2, 0)
            continue
        if strip.mode == "LAB":
            lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            strip = ImageCms.profileToProfile(strip, lab, rgb, outputMode="RGB")
        pixels[top : top + rows] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return pixels


def _upright(pixels: np.ndarray, orientation: Any) -> np.ndarray:
    """Applies EXIF's orientation (1 to 8)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(1, 2)
    axes = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return pixels if axes is None else np.flip(pixels, axes)


def _to_array(array: Any, name: str) -> np.ndarray:
    if is_tensor(array):
        layout = str(array.layout).removeprefix("torch.")
        if layout != "strided" or array.is_meta:
            raise TypeError(f"{name}: got a {layout} tensor on {array.device}, expected a dense one (to_dense())")
        if array.is_complex():
            raise ValueError(f"{name}: got values of type {array.dtype}, expected bytes, integers or floats")
        array = array.detach().cpu()
        return (array.float() if array.is_floating_point() else array).numpy()
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name}: got an array of {array.dtype}, expected bytes, integers or floats")
    return array


def _channels_first(array: np.ndarray, name: str) -> np.ndarray:
    shape = array.shape
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and shape[0] > 4 and shape[2] <= 4:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or not 1 <= array.shape[0] <= 4:
        raise ValueError(f"{name}: got an array of shape {shape}, expected {_EXPECTED}")
    return array


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> np.ndarray:
    array = _channels_first(array, name)
    _check_size(*array.shape[1:], name, max_pixels, "" if array.dtype == np.uint8 else "float")
    array = _to_byte_range(array, name)
    if array.shape[0] == 2:
        array = np.concatenate([np.repeat(array[:1], 3, axis=0), array[1:]])
    return _on_background(array) if array.shape[0] == 4 else np.broadcast_to(array, (3, *array.shape[1:]))


def _to_byte_range(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    is_16_bit, is_float = array.dtype.newbyteorder("=") == np.uint16, array.dtype.kind == "f"
    array = array.astype(np.float32, copy=False)
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= (255 if is_float else 65535)):  # also catches NaN
        raise ValueError(
            f"{name}: got values from {low:g} to {high:g}, expected 0 to 1 or 0 to 255 (floats), 0 to 255 or 0 to "
            "65535 (integers); do not process an image that is already normalised"
        )
    if is_float:
        return array * 255 if high <= 1 else array
    return array / 257 if high > 255 or is_16_bit else array


def _on_background(rgba: np.ndarray) -> np.ndarray:
    """RGBA over mid grey, in the same dtype; in strips, because the arithmetic is in floats."""
    rgb, rows = np.empty_like(rgba[:3]), max(1, _STRIP // rgba.shape[2])
    for top in range(0, rgba.shape[1], rows):
        part = rgba[:, top : top + rows].astype(np.float32)
        alpha = part[3:] / 255
        part = part[:3] * alpha + BACKGROUND * (1 - alpha)
        rgb[:, top : top + rows] = part if rgb.dtype.kind == "f" else part.round()
    return rgb


def _check_size(height: int, width: int, name: str, max_pixels: int, *kinds: str | None) -> None:
    """kinds: file format, PIL mode, array type; the one that needs most memory a pixel counts."""
    cost = max(_DECODED_BYTES.get(kind, _USUAL_BYTES) for kind in (*kinds, None))
    most, got = max_pixels * _USUAL_BYTES // cost, f"{name}: got {width} x {height} pixels, expected"
    if width * height > most:
        share = f" (this format needs {cost} bytes a pixel to decode)" if most < max_pixels else ""
        raise ValueError(
            f"{got} at most {most:,} in all{share}; shrink it, or raise max_pixels if you trust its source"
        )
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"{got} at least {MIN_SIDE} a side")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"{got} one side at most {MAX_ASPECT_RATIO} times the other; cut out the part with the face")
