"""Whatever a user calls an image, to an RGB tensor; what is not one is an error that says which item and why."""

import io
import os
import struct
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps


try:
    import cv2
except ImportError:
    cv2 = None


BACKGROUND = 127.5
"""Mid grey stands wherever a picture says nothing: behind transparency, beyond its border, under a cutout."""

MIN_SIDE = 16
"""Pixels; a smaller picture cannot show a face."""

_ORIENTATION = 0x0112  # in EXIF
# Of a JPEG: frames that every decoder reads, and the segments that change neither its colours nor its direction.
_FRAMES, _SCAN = (0xC0, 0xC1, 0xC2), 0xDA
_PLAIN_SEGMENTS = {bytes((0xFF, marker)) for marker in (*_FRAMES, 0xC4, 0xDB, 0xDD, 0xE0, 0xFE, _SCAN)}
_MAX_DOWNLOAD = 64 * 2**20
_EXPECTED = (
    "a PIL image, a path, bytes, {'bytes': ..., 'path': ...}, or a numpy array or torch tensor of shape (height, "
    "width), (height, width, channels) or (channels, height, width) with 1 to 4 channels"
)


def flatten_images(images: Any) -> list[Any]:
    """A single image, a list (also nested), or a 4-D array: to a flat list."""
    if isinstance(images, list | tuple):
        return [leaf for item in images for leaf in flatten_images(item)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def read_image(
    image: Any, *, name: str = "image", max_pixels: int = 100_000_000, allow_url: bool = False
) -> torch.Tensor:
    """(3, height, width) as the eye sees it, EXIF rotation applied: uint8, or float32 from 0 to 255 if bytes lose.

    Files and bytes (also as {"bytes": ..., "path": ...}, an undecoded row of `datasets`) are read by PIL, of an
    animation the first frame; the number of pixels is checked before they are decoded. PIL's own limit (and warning)
    holds beside `max_pixels` only in formats that check it while they decode: TIFF, WebP, ICO, ICNS, and GIF's frames.
    An opened PIL image is taken at its current frame. Arrays: 8 bit as they are; unsigned 16 bit, and other integers if
    a value exceeds 255, divided by 257; floats as [0, 1] if no value exceeds 1 and as [0, 255] otherwise.
    """
    image = _resolve(image, name, allow_url)
    if isinstance(image, Image.Image):
        return _from_pil(image, name, max_pixels)
    if isinstance(image, np.ndarray | torch.Tensor):
        return _from_array(_to_tensor(image, name), name)
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


def _resolve(image: Any, name: str, allow_url: bool) -> Image.Image | np.ndarray | torch.Tensor | Path | bytes:
    if isinstance(image, Mapping) and image and set(image) <= {"bytes", "path"}:
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if image is None:
            raise ValueError(f"{name}: got neither bytes nor a path, expected one of them")
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return _download(image, name, allow_url)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f"{name}: there is no file {str(path)!r}")
        return path
    if isinstance(image, Image.Image | np.ndarray | torch.Tensor | bytes | bytearray):
        return image
    raise TypeError(f"{name}: got {type(image).__name__}, expected {_EXPECTED}")


def _download(url: str, name: str, allow_url: bool) -> bytes:
    if not allow_url:
        raise ValueError(
            f"{name}: got the address {url!r}, but nothing is fetched from the network unless asked; pass "
            "allow_url=True, or download the image first"
        )
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read(_MAX_DOWNLOAD + 1)
    except OSError as error:
        raise ValueError(f"{name}: {url!r} could not be fetched ({error})") from error
    if len(content) > _MAX_DOWNLOAD:
        raise ValueError(f"{name}: {url!r} is larger than {_MAX_DOWNLOAD // 2**20} MiB; download the image first")
    return content


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """The image with its header read and its pixels not yet."""
    where, path = (f"{str(source)!r}", str(source)) if isinstance(source, Path) else ("the bytes", "")
    with open(source, "rb") if path else io.BytesIO(source) as file:
        if not file.read(1):
            raise ValueError(f"{name}: {where} holds zero bytes, expected an image file")
        try:
            opened = _open_unlimited(file, path)
        except Image.DecompressionBombError as error:
            raise _pil_refuses(error, name) from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(f"{name}: {where} is not an image in a format that PIL can read") from error
        except (OSError, SyntaxError, ValueError) as error:  # a header that breaks off
            raise ValueError(f"{name}: {where} could not be read as an image, it seems damaged ({error})") from error
        yield opened


def _open_unlimited(file: BinaryIO, path: str) -> Image.Image:
    """`Image.open` without its check of the size, whose limit is a global that all threads share: ours is an argument,
    and is checked by `_from_pil`."""
    file.seek(0)
    start, tried = file.read(16), set()
    for load_plugins in (Image.preinit, Image.init):  # the common ones first
        load_plugins()
        for kind in [kind for kind in Image.ID if kind not in tried]:
            tried.add(kind)
            factory, accepts = Image.OPEN[kind]
            try:
                answer = not accepts or accepts(start)
                if answer and not isinstance(answer, str):  # a string says what is missing to read it
                    file.seek(0)
                    return factory(file, path)
            # Too short, or another format with the same start.
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
    raise Image.UnidentifiedImageError


def _pil_refuses(error: Image.DecompressionBombError, name: str) -> ValueError:
    return ValueError(
        f"{name}: PIL itself refuses an image of this size and format, whatever max_pixels is ({error}); shrink the "
        "image, save it as PNG or JPEG, or raise PIL.Image.MAX_IMAGE_PIXELS"
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
    _check_pixels(image.height, image.width, name, max_pixels)
    try:
        image.load()
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)  # not in place: the user's image stays as it is
    except Image.DecompressionBombError as error:
        raise _pil_refuses(error, name) from error
    except Exception as error:  # PIL's decoders raise whatever stopped them
        raise ValueError(f"{name}: the image is truncated or damaged ({error})") from error
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_array(_to_tensor(np.array(image), name), name)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = torch.from_numpy(np.array(image.convert("RGBA"))).permute(2, 0, 1)
        return _on_background(rgba.float())
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    image = image if image.mode == "RGB" else image.convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _to_tensor(array: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
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


def _from_array(array: torch.Tensor, name: str) -> torch.Tensor:
    array = _channels_first(array, name)
    _check_sides(*array.shape[1:], name)
    array = _to_byte_range(array, name)
    if array.shape[0] in (1, 2):
        array = torch.cat([array[:1].expand(3, -1, -1), array[1:]])
    return _on_background(array.float()) if array.shape[0] == 4 else array


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
    alpha = rgba[3:] / 255
    return rgba[:3] * alpha + BACKGROUND * (1 - alpha)


def _check_pixels(height: int, width: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: got {width} x {height} pixels, expected at most {max_pixels:,} in all; shrink the image, or "
            "raise max_pixels if you trust where it comes from"
        )
    _check_sides(height, width, name)


def _check_sides(height: int, width: int, name: str) -> None:
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"{name}: got {width} x {height} pixels, expected at least {MIN_SIDE} a side")
