"""Whatever a user calls an image, to an RGB tensor; what is not one is an error that says which item and why."""

import io
import os
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps


BACKGROUND = 127.5
"""Mid grey stands wherever a picture says nothing: behind transparency, beyond its border, under a cutout."""

MIN_SIDE = 16
"""Pixels; a smaller picture cannot show a face."""

_MAX_DOWNLOAD = 64 * 2**20
_EXPECTED = (
    "a PIL image, a path, bytes, or a numpy array or torch tensor of shape (height, width), (height, width, channels) "
    "or (channels, height, width) with 1 to 4 channels"
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

    Files and bytes are read by PIL, of an animation the first frame; the number of pixels is checked before they are
    decoded. An opened PIL image is taken at its current frame. Arrays: 8 bit as they are; unsigned 16 bit, and other
    integers if a value exceeds 255, divided by 257; floats as [0, 1] if no value exceeds 1 and as [0, 255] otherwise.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image, name, max_pixels)
    if isinstance(image, np.ndarray | torch.Tensor):
        return _from_array(_to_tensor(image, name), name)
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        image = _download(image, name, allow_url)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f"{name}: there is no file {str(path)!r}")
        return _decode(path, path.stat().st_size, name, max_pixels)
    if isinstance(image, bytes | bytearray):
        return _decode(io.BytesIO(image), len(image), name, max_pixels)
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


def _decode(source: Path | io.BytesIO, num_bytes: int, name: str, max_pixels: int) -> torch.Tensor:
    where = f"{str(source)!r}" if isinstance(source, Path) else "the bytes"
    if num_bytes == 0:
        raise ValueError(f"{name}: {where} holds zero bytes, expected an image file")
    try:
        opened = Image.open(source)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {where} has too many pixels even for PIL ({error})") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name}: {where} is not an image in a format that PIL can read") from error
    except (OSError, SyntaxError, ValueError) as error:  # a header that breaks off
        raise ValueError(f"{name}: {where} could not be read as an image, it seems damaged ({error})") from error
    with opened:
        return _from_pil(opened, name, max_pixels)


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> torch.Tensor:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: got {width} x {height} pixels, expected at most {max_pixels:,} in all; shrink the image, or "
            "raise max_pixels if you trust where it comes from"
        )
    _check_sides(height, width, name)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)  # not in place: the user's image stays as it is
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
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _to_tensor(array: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array.detach()
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name}: got an array of {array.dtype}, expected bytes, integers or floats")
    # torch wants the machine's own byte order, writable memory and no negative strides.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def _from_array(array: torch.Tensor, name: str) -> torch.Tensor:
    shape = tuple(array.shape)
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and shape[0] > 4 and shape[2] <= 4:
        array = array.permute(2, 0, 1)
    if array.ndim != 3 or not 1 <= array.shape[0] <= 4:
        raise ValueError(f"{name}: got an array of shape {shape}, expected {_EXPECTED}")
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


def _check_sides(height: int, width: int, name: str) -> None:
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"{name}: got {width} x {height} pixels, expected at least {MIN_SIDE} a side")
