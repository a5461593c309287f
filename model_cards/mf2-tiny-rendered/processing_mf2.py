from .configuration_mf2 import ACTION_UNITS
from .configuration_mf2 import CANONICAL_FACE
from .configuration_mf2 import EMOTIONS
from .configuration_mf2 import MF2Config
from .configuration_mf2 import SelfContainedMixin
from .configuration_mf2 import UNKNOWN_LABEL
from .configuration_mf2 import check_action_units
from .configuration_mf2 import read_json
from .configuration_mf2 import resolve_label_set
from PIL import Image
from PIL import ImageCms
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from itertools import islice
from itertools import pairwise
from pathlib import Path
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from transformers import AutoModelForPreTraining
from transformers import BatchFeature
from transformers import PilBackend
from transformers import Pipeline
from transformers import PreTrainedTokenizerBase
from transformers import TorchvisionBackend
from transformers import pipeline
from transformers.image_utils import ImageInput
from transformers.image_utils import PILImageResampling
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.processing_utils import ImagesKwargs
from transformers.processing_utils import ProcessorMixin
from transformers.processing_utils import Unpack
from transformers.utils import TensorType
from transformers.utils import cached_file
from transformers.utils import logging
from types import SimpleNamespace
from typing import Any
from typing import BinaryIO
from typing import ClassVar
from typing import Literal
from typing import NamedTuple
from typing import Protocol
from urllib.error import URLError
from urllib.parse import urlsplit
import base64
import binascii
import cv2
import difflib
import functools
import hashlib
import importlib
import inspect
import io
import ipaddress
import math
import numpy as np
import os
import pickle
import re
import socket
import sys
import threading
import torch
import urllib.request


# processing_mf2/image_io.py


try:
    import cv2
except ImportError:
    cv2 = None


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""Formats that PIL may open. Others start programs (EPS) or decode without bounds."""


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


# processing_mf2/geometry.py


try:
    import cv2
except ImportError:  # PIL does the same, more slowly
    cv2 = None


STEADY_POINTS: tuple[int, ...] = (0, 1, 2, 14, 15, 16, *range(27, 48))
"""Sides of the face, nose and eyes. Brows, mouth and jaw move with action units: fitting them too would remove part of
the movement that is to be recognised."""


_CV2_SIDE = 32767


_MOST_SAMPLES = 2**22  # resampled at once; larger crops are made in bands


_SCRATCH = threading.local()


def canonical_landmarks(height: int, width: int) -> np.ndarray:
    """The mean face's 68 landmarks in a crop of this size: (68, 2)."""
    return np.array(CANONICAL_FACE) * (width, height)


def fit_similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares rotation, scale and shift from (n, 2) points to the target, as a 3x3 matrix (Umeyama).

    With points as complex numbers it is a linear regression, and a reflection cannot occur.
    """
    source, aim = points @ (1, 1j), target @ (1, 1j)
    centred = source - source.mean()
    turn = np.vdot(centred, aim - aim.mean()) / np.vdot(centred, centred).real
    shift = aim.mean() - turn * source.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag], [0, 0, 1]])


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Corners of the eyes and base of the nose, which expressions move least."""
    return np.concatenate([landmarks[[36, 39, 42, 45]], landmarks[31:36].mean(0, keepdims=True)])


def alignment_matrix(landmarks: np.ndarray, height: int, width: int, alignment: str = "steady") -> np.ndarray:
    """alignment: by `STEADY_POINTS`, or by `five_points`."""
    chosen = five_points if alignment == "five_points" else lambda points: points[list(STEADY_POINTS)]
    return fit_similarity(chosen(landmarks), chosen(canonical_landmarks(height, width)))


def resize_matrix(old_height: int, old_width: int, height: int, width: int) -> np.ndarray:
    return np.diag([width / old_width, height / old_height, 1.0])


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def warp(image: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resamples (channels, h, w) from 0 to 255 into a float32 crop; `matrix` maps image pixels to crop pixels.

    Bilinear; where the image shrinks, a crop pixel averages as many samples as it covers image pixels, so nothing
    aliases. Beyond the image's border there is mid grey.
    """
    source, bands, samples = _plan(image, matrix, height, width)
    if not _cv2_can(source, height * samples[0], width * samples[1]):
        return warp_by_pil(image, matrix, height, width)
    crop = np.empty((image.shape[0], height, width), np.float32)
    for top, bottom, band in bands:
        region, band = _around_crop(source, band, bottom - top, width)
        pixels = _scratch("source", np.dtype(np.float32), *region.shape[1:], region.shape[0])
        pixels[:] = region.transpose(1, 2, 0)
        crop[:, top:bottom] = _resample(pixels, band, (bottom - top, width), samples).transpose(2, 0, 1)
    return crop


def warp_by_pil(image: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """`warp` by PIL: equal to a few thousandths of a brightness step, except along the image's border."""
    source, bands, (rows, columns) = _plan(image, matrix, height, width)
    crop = np.empty((image.shape[0], height, width), np.float32)
    for top, bottom, band in bands:
        to_source = np.linalg.inv(band) @ np.diag([1 / columns, 1 / rows, 1])
        size, data = (width * columns, (bottom - top) * rows), to_source[:2].ravel().tolist()
        for channel, target in zip(source.astype(np.float32), crop, strict=True):
            layer = Image.fromarray(channel)
            layer = layer.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=BACKGROUND)
            target[top:bottom] = np.asarray(layer).reshape(bottom - top, rows, width, columns).mean(axis=(1, 3))
    return crop


def _plan(
    image: np.ndarray, matrix: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, list[tuple[int, int, np.ndarray]], tuple[int, int]]:
    """What to resample, the crop's bands (top, bottom, matrix), and the samples a crop pixel averages, down and across.

    A large shrink averages squares of pixels first, so that the work is bounded by the image's size.
    """
    (a, b, _), (c, d, _), _ = np.linalg.inv(matrix).tolist()
    step_x, step_y = math.hypot(a, c), math.hypot(b, d)  # image pixels per crop pixel, along the crop's axes
    pool = max(1, int(min(step_x, step_y) / 2))
    rows, columns = (max(1, math.ceil(step / pool - 1e-6)) for step in (step_y, step_x))
    source = image if pool == 1 else pooled(image, pool)
    count = min(height, math.ceil(height * rows * width * columns / _MOST_SAMPLES))
    edges = [height * band // count for band in range(count + 1)]
    scaled = matrix @ np.diag([pool, pool, 1.0])
    return source, [(top, bottom, _shift(0, -top) @ scaled) for top, bottom in pairwise(edges)], (rows, columns)


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def pooled(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of factor x factor pixels, as float32; in strips, without a copy of the whole image."""
    channels, height, width = image.shape
    rows = factor * max(1, _STRIP // (factor * width))
    means = np.zeros((-(-height // factor), -(-width // factor), channels), np.float32)
    for top in range(0, height, rows):
        part = image[:, top : top + rows].transpose(1, 2, 0)
        sums = np.zeros((-(-len(part) // factor), width, channels), np.float32)
        for down in range(factor):
            lines = part[down::factor]
            sums[: len(lines)] += lines
        target = means[top // factor :][: len(sums)]
        for right in range(factor):
            columns = sums[:, right::factor]
            target[:, : columns.shape[1]] += columns
    across, along = (np.minimum(side - np.arange(0, side, factor), factor) for side in (height, width))
    means /= (across[:, None] * along)[:, :, None]
    return means.transpose(2, 0, 1)


def _cv2_can(image: np.ndarray, rows: int, columns: int) -> bool:
    return cv2 is not None and image.shape[0] in (1, 3) and max(*image.shape[1:], rows, columns) < _CV2_SIDE


def _corners(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """The crop's corners in the image."""
    return transform_points(np.linalg.inv(matrix), np.array([[0, 0], [width, 0], [0, height], [width, height]]))


def _around_crop(image: np.ndarray, matrix: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the image that a crop reads and its matrix: with many faces the image is not copied for each."""
    corners, sides = _corners(matrix, height, width), (image.shape[2], image.shape[1])
    left, top = np.clip(np.floor(corners.min(0)) - 2, 0, sides).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(0)) + 2, 0, sides).astype(int).tolist()
    if not 0 < (right - left) * (bottom - top) < 0.7 * sides[0] * sides[1]:  # outside, or not worth it
        return image, matrix
    return image[:, top:bottom, left:right], matrix @ _shift(left, top)


def _scratch(role: str, dtype: np.dtype, *shape: int) -> np.ndarray:
    """Memory of this thread, reused: allocating it anew costs as much as the resampling."""
    name, size = f"{role}_{dtype}", math.prod(shape)
    if getattr(_SCRATCH, name, np.empty(0)).size < size:
        setattr(_SCRATCH, name, np.empty(size, dtype))
    return getattr(_SCRATCH, name)[:size].reshape(shape)


@functools.lru_cache(maxsize=4)
def _grey(dtype: np.dtype, *shape: int) -> np.ndarray:
    return np.full(shape, BACKGROUND if dtype.kind == "f" else math.ceil(BACKGROUND), dtype)


def _resample(
    source: np.ndarray, matrix: np.ndarray, crop_size: tuple[int, int], per_pixel: tuple[int, int]
) -> np.ndarray:
    """`warp` by OpenCV, of and to (height, width, channels) of one dtype; the result lies in scratch memory."""
    loading = sys.modules.get("torch.utils.data")
    if loading is not None and loading.get_worker_info() is not None:
        cv2.setNumThreads(0)  # each worker has one core
    image_height, image_width, channels = source.shape
    (height, width), (rows, columns) = crop_size, per_pixel
    # OpenCV counts from the first pixel's centre.
    finer = np.array([[columns], [rows]]) * matrix[:2]
    finer[:, 2] += finer[:, :2].sum(axis=1) / 2 - 0.5
    size, shape = (width * columns, height * rows), (height * rows, width * columns, channels)
    samples = _scratch("samples", source.dtype, *shape)
    cv2.warpAffine(source, finer, size, samples, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    corners = _corners(matrix, height, width)
    if corners.min() < -1e-6 or (corners.max(0) > np.array([image_width, image_height]) + 1e-6).any():
        outside = np.zeros((image_height, image_width), np.uint8)
        outside = cv2.warpAffine(outside, finer, size, flags=cv2.INTER_NEAREST, borderValue=255)
        cv2.copyTo(_grey(source.dtype, *shape), outside, samples)
    if rows * columns > 1:
        crop = _scratch("crop", source.dtype, height, width, channels)
        samples = cv2.resize(samples, (width, height), crop, interpolation=cv2.INTER_AREA)
    return samples.reshape(height, width, channels)


# processing_mf2/landmarks.py


LandmarkSource = Literal["template", "insightface112", "ffhq", "mediapipe", "face_alignment", "given"]


NoFacePolicy = Literal["raise", "template", "skip"]


ManyFacesPolicy = Literal["largest", "all"]


@dataclass(frozen=True)
class DetectedFace:
    box: np.ndarray
    """left, top, right, bottom in pixels of the image."""
    score: float
    """0 to 1, of the box."""
    landmarks: np.ndarray
    """(68, 2)"""
    confidence: np.ndarray
    """(68,), the network's response at each landmark: low where it is hidden."""
    pose: tuple[float, float, float] | None = None
    """Pitch, yaw and roll in degrees, from a detector that measures them."""

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


def _five_points(face: np.ndarray) -> np.ndarray:
    """Centres of the eyes, tip of the nose, corners of the mouth."""
    return np.array([face[36:42].mean(0), face[42:48].mean(0), face[30], face[48], face[54]])


def _insightface_template(face: np.ndarray) -> np.ndarray:
    """insightface's 112-pixel crop (also ArcFace, Aff-Wild2's `cropped_aligned`) puts five points here."""
    target = [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
    return transform_points(fit_similarity(_five_points(face), np.array(target) / 112), face)


def _ffhq_template(face: np.ndarray) -> np.ndarray:
    """FFHQ's crop: a square around the eyes' centre, its side four eye distances or 3.6 times eyes to mouth."""
    left, right, _, *corners = _five_points(face)
    eyes, mouth = (left + right) / 2, np.mean(corners, axis=0)
    side = max(4 * np.hypot(*(right - left)), 3.6 * np.hypot(*(mouth - eyes)))
    return (face - eyes - 0.1 * (mouth - eyes)) / side + 0.5


_MEAN_FACE = canonical_landmarks(1, 1)


TEMPLATES: dict[str, np.ndarray] = {
    "template": _MEAN_FACE,
    "insightface112": _insightface_template(_MEAN_FACE),
    "ffhq": _ffhq_template(_MEAN_FACE),
}
"""Where ready-aligned crops have the mean face: (68, 2) as fractions of width and height. `template` is MF²'s own."""


def template_landmarks(height: int, width: int, template: str = "template") -> np.ndarray:
    """The mean face's in a crop that is aligned to this template: (68, 2)."""
    return TEMPLATES[template] * (width, height)


def landmarks_per_image(landmarks: Any, count: int) -> list[Any]:
    """The landmarks given for each of `count` images, unchecked, or `None`."""
    if landmarks is None:
        return [None] * count
    if isinstance(landmarks, np.ndarray) or is_tensor(landmarks):
        # For one image, the axis of images is optional.
        landmarks = [landmarks] if count == 1 and landmarks.ndim != 3 else list(landmarks)
    elif isinstance(landmarks, list | tuple) and count == 1 and len(landmarks) != 1:
        landmarks = [landmarks]
    if not isinstance(landmarks, list | tuple) or len(landmarks) != count:
        got = f"{len(landmarks)} sets" if isinstance(landmarks, list | tuple) else type(landmarks).__name__
        raise ValueError(f"landmarks: got {got}, expected {count}, one (68, 2) set (or None) for each image")
    return list(landmarks)


def check_landmarks(landmarks: Any, height: int, width: int, name: str) -> np.ndarray:
    """(68, 2) float64, if they can be those of a face in an image of this size."""
    if is_tensor(landmarks):
        landmarks = landmarks.detach().float().cpu()
    try:
        points = np.asarray(landmarks, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: got {type(landmarks).__name__}, expected (68, 2) numbers ({error})") from error
    if points.shape != (68, 2):
        raise ValueError(f"{name}: got {points.shape}, expected (68, 2), x and y of the 68 iBUG points in pixels")
    if not np.isfinite(points).all():
        bad = np.flatnonzero(~np.isfinite(points).all(axis=1)).tolist()
        raise ValueError(f"{name}: points {bad} are not finite; leave out landmarks that are unknown")
    size = np.array([width, height])
    low, high = points.min(axis=0), points.max(axis=0)
    if (low < -size / 2).any() or (high > 1.5 * size).any():
        raise ValueError(
            f"{name}: got x from {low[0]:.1f} to {high[0]:.1f} and y from {low[1]:.1f} to {high[1]:.1f}, expected "
            f"pixels of their image, which has {width} x {height}"
        )
    # Spread of the points along their principal axes.
    x, y = (steady := points[list(STEADY_POINTS)]).T - steady.mean(axis=0)[:, None]
    both, apart = (x @ x + y @ y) / len(x), math.hypot(x @ x - y @ y, 2 * (x @ y)) / len(x)
    longest, shortest = math.sqrt((both + apart) / 2), math.sqrt(max(both - apart, 0) / 2)
    if longest < 1 or shortest < 0.02 * longest:
        raise ValueError(
            f"{name}: the points spread over {longest:.2f} by {shortest:.2f} pixels, one spot or one line; expected a "
            "face. Landmarks are pixels, not fractions of the image"
        )
    return points


_MOST_REVERSED = 0.2
"""Share of the eyes' distance from the mouth: in a profile the hidden eye's points may lie beyond the other's."""


def check_orientation(points: np.ndarray, name: str) -> None:
    """Raises if left and right are exchanged, as in a mirror."""
    first_eye, second_eye, mouth = (points[part].mean(axis=0) for part in (slice(36, 42), slice(42, 48), slice(48, 68)))
    across, down = second_eye - first_eye, mouth - (first_eye + second_eye) / 2
    # Twice the triangle's signed area: positive in images, where y points down.
    if across[0] * down[1] - across[1] * down[0] < -_MOST_REVERSED * (down @ down):
        raise ValueError(
            f"{name}: got a mirrored face, expected points 36 to 41 on the left eye of an upright image; left and "
            "right, or x and y, seem to be exchanged. When flipping an image, reorder the points too"
        )


def choose_faces(
    faces: Sequence[DetectedFace], *, on_no_face: NoFacePolicy, on_many_faces: ManyFacesPolicy, name: str
) -> list[DetectedFace] | None:
    """The faces of one image to use: none if it is to be skipped, `None` if the template is to replace them."""
    if not faces:
        if on_no_face == "raise":
            raise ValueError(
                f"{name}: no face was found; give its landmarks, or on_no_face='skip' (leave the image out) or "
                "'template' (take it as a ready-aligned crop)"
            )
        return None if on_no_face == "template" else []
    if on_many_faces == "all":
        return list(faces)
    return [max(faces, key=lambda face: face.area)]


def face_in_image(
    height: int, width: int, points: np.ndarray | None, source: LandmarkSource, found: DetectedFace | None = None
) -> dict[str, Any]:
    """Box and landmarks of a face in pixels of its image, with their sources: plain numbers, by name.

    The box is the detector's, else the bounds of the given landmarks; a template's is the whole image.
    """
    if points is None:
        points = template_landmarks(height, width, source if source in TEMPLATES else "template")
        box, box_source = np.array([0, 0, width, height]), "image"
    elif found is not None:
        box, box_source = found.box, source
    else:
        box, box_source = np.concatenate([points.min(axis=0), points.max(axis=0)]), "landmarks"
    face = {
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, box), strict=True)),
        "box_source": box_source,
        "landmarks": np.asarray(points, dtype=np.float64).tolist(),
        "landmark_source": source,
    }
    return face if found is None else {**face, "box_score": float(found.score)}


class FaceAlignmentDetector:
    """Faces and their landmarks by the face-alignment package (S3FD boxes, 2DFAN4 landmarks).

    Its networks are loaded at the first image and shared by all detectors of equal settings. compile: worth its start
    only for long runs. flip_input: averages over the mirrored face, at twice the time. detection_side: boxes are
    detected in a copy no larger than this, landmarks in the full image. max_batch_size: faces a forward pass.
    """

    def __init__(
        self,
        device: str = "cpu",
        *,
        compile: bool = False,
        flip_input: bool = True,
        detection_side: int = 640,
        max_batch_size: int = 8,
        min_score: float = 0.5,
    ):
        self.settings = (str(device), compile, flip_input, max_batch_size, min_score)
        self.detection_side = detection_side

    @property
    def network(self) -> Any:
        with _LOADING:
            return _load_network(*self.settings)

    def detect(self, images: Sequence[Any]) -> list[list[DetectedFace]]:
        """(3, height, width) images from 0 to 255, of any sizes, arrays or tensors -> the faces of each."""
        import torch  # by this detector alone

        images = [image.cpu().numpy() if is_tensor(image) else image for image in images]
        copies, scales = zip(*(self._detection_copy(image) for image in images), strict=True) if images else ((), ())
        boxes: list[Sequence[np.ndarray]] = [()] * len(images)
        for group in _groups_of_equal_shape(copies):
            found = self.network.face_detector.detect_from_batch(torch.stack([copies[i] for i in group]))
            for index, image_boxes in zip(group, found, strict=True):
                boxes[index] = image_boxes
        return [
            self._landmarks(image, image_boxes, scale)
            for image, image_boxes, scale in zip(images, boxes, scales, strict=True)
        ]

    def _detection_copy(self, image: np.ndarray) -> tuple[Any, float]:
        import torch

        height, width = image.shape[1:]
        scale = min(1.0, self.detection_side / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        if scale < 1 and height * width > _LARGE:
            image = pooled(image, max(1, int(0.5 / scale)))
        copy = torch.tensor(image, dtype=torch.float32)
        if scale < 1:
            copy = torch.nn.functional.interpolate(copy[None], size, mode="bilinear", antialias=True)[0]
        return copy, scale

    def _landmarks(self, image: np.ndarray, boxes: Sequence[np.ndarray], scale: float) -> list[DetectedFace]:
        if len(boxes) == 0:
            return []
        boxes = [np.array([*(np.asarray(box[:4]) / scale), box[4]]) for box in boxes]
        pixels = np.ascontiguousarray(image.round().astype(np.uint8).transpose(1, 2, 0))
        points, confidence, _ = self.network.get_landmarks_from_image(
            pixels, detected_faces=boxes, return_bboxes=True, return_landmark_score=True
        )
        faces = [
            # face-alignment truncates to whole pixels; half a pixel leads back to the pixel's centre.
            DetectedFace(box[:4], float(box[4]), np.asarray(face_points, dtype=np.float64) + 0.5, np.asarray(scores))
            for box, face_points, scores in zip(boxes, points, confidence, strict=True)
        ]
        return sorted(faces, key=lambda face: -face.area)


_LARGE = 2**24  # pixels; as floats of all colours that is 200 MB


def _groups_of_equal_shape(images: Sequence[Any]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(index)
    return list(groups.values())


_LOADING = threading.Lock()


def missing_weights() -> tuple[str, list[str]]:
    """The folder that face-alignment reads its weights from, and the URLs of those that are not there."""
    try:  # here: the package takes seconds to import
        import torch
        from face_alignment import api
        from face_alignment.detection.sfd import sfd_detector
    except ImportError as error:
        raise ImportError(
            f"faces are detected by the face-alignment package ({error}): pip install face-alignment"
        ) from error
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    urls = [sfd_detector.models_urls["s3fd"], api.models_urls["2DFAN-4"]]
    return folder, [url for url in urls if not os.path.isfile(os.path.join(folder, os.path.basename(url)))]


@functools.lru_cache(maxsize=4)
def _load_network(device: str, compile: bool, flip_input: bool, max_batch_size: int, min_score: float) -> Any:
    folder, missing = missing_weights()
    import face_alignment

    try:
        return face_alignment.FaceAlignment(
            face_alignment.LandmarksType.TWO_D,
            **{"device": device, "compile": compile, "flip_input": flip_input, "max_batch_size": max_batch_size},
            face_detector_kwargs={"filter_threshold": min_score},
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        advice = (
            f"fetch {' and '.join(missing)} and put them there" if missing else "delete its files if they are damaged"
        )
        raise OSError(
            f"face-alignment could not load its weights ({error}) from {folder}; without access to its server, {advice}"
        ) from error


# processing_mf2/crops.py


Alignment = Literal["steady", "five_points"]


class CropSize(NamedTuple):
    height: int
    width: int


# Settings of transformers for which this processor has one value only.
_FIXED = {
    **{"do_resize": True, "do_convert_rgb": True, "do_center_crop": False, "do_pad": False},
    **{"resample": Image.Resampling.BILINEAR, "data_format": "channels_first"},
}


_CHOICES = {
    "alignment": Alignment.__args__,
    "landmark_source": LandmarkSource.__args__,
    "on_no_face": NoFacePolicy.__args__,
    "on_many_faces": ManyFacesPolicy.__args__,
}


_SWITCHES = (
    *("do_align", "do_rescale", "do_normalize", "do_grayscale", "normalize_per_image"),
    *("allow_url", "return_landmark_source", "return_faces"),
)


GREY_WEIGHTS = (0.299, 0.587, 0.114)


_FLAT = 5.0
"""Grey levels of deviation below which a crop counts as flat, and its noise is not magnified."""


_DETECTOR_SETTINGS = set(inspect.signature(FaceAlignmentDetector).parameters)


_MOST_LEVEL = 1e6  # of image_mean and image_std


_LARGEST_CROP = 4096  # pixels a side


CALLERS_OWN = ("allow_url", "max_pixels", "timeout")
"""Set by the caller alone: a checkpoint neither opens the network nor raises the memory limit."""


def check_names(given: Iterable[str], known: set[str], owner: str) -> None:
    for name in sorted(set(given) - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TypeError(f"{owner}: got an unknown setting {name!r}; {hint}Settings: {sorted(known)}")


def check_choices(chosen: Mapping[str, Any]) -> None:
    for name in _CHOICES.keys() & chosen.keys():
        if not isinstance(chosen[name], str) or chosen[name] not in _CHOICES[name]:
            raise ValueError(f"{name}: got {chosen[name]!r:.80}, expected one of {list(_CHOICES[name])}")


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a processor or a call, with `size`, `image_mean` and `image_std` in one form; or an error."""
    for name, only in _FIXED.items():
        if settings.get(name) not in (None, only):
            raise ValueError(f"{name}: got {settings[name]!r:.80}, expected {only!r}: crops are always RGB of `size`")
    check_choices(settings)
    for name in _SWITCHES:
        if settings.get(name) is not None and type(settings[name]) is not bool:
            raise ValueError(f"{name}: got {settings[name]!r:.80}, expected True or False")
    if type(settings["max_pixels"]) is not int or settings["max_pixels"] < 1:
        raise ValueError(f"max_pixels: got {settings['max_pixels']!r:.80}, expected a whole number from 1")
    detector = settings.get("face_alignment_kwargs")
    if detector is not None and not isinstance(detector, Mapping):
        raise ValueError(f"face_alignment_kwargs: got {detector!r:.80}, expected a dict, such as {{'device': 'cpu'}}")
    check_names(detector or (), _DETECTOR_SETTINGS, "face_alignment_kwargs")
    factor = settings.get("rescale_factor")
    if settings.get("do_rescale") and not (_is_number(factor) and factor):
        raise ValueError(f"rescale_factor: got {factor!r:.80}, expected a finite number that is not 0, such as 1/255")
    resolved = {**settings, "size": _size(settings.get("size"))}
    for name in ("image_mean", "image_std"):
        values = settings.get(name)
        if isinstance(values, list | tuple):
            resolved[name] = values = tuple(values)
        levels = values if isinstance(values, tuple) else (values,) * 3
        low = 1e-6 if name == "image_std" else -_MOST_LEVEL
        right = len(levels) == 3 and all(_is_number(level) and low <= level <= _MOST_LEVEL for level in levels)
        if not right and (settings.get("do_normalize") or values is not None):
            above = " above 0" if name == "image_std" else ""
            raise ValueError(f"{name}: got {values!r:.80}, expected a number{above} up to {_MOST_LEVEL:g}, or three")
    return resolved


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _size(size: Any) -> CropSize:
    if isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    elif hasattr(size, "height"):  # transformers' own
        size = dict(size)
    elif not isinstance(size, Mapping):
        size = {"height": size, "width": size}
    height, width = size.get("height"), size.get("width")
    right = all(type(side) is int and 0 < side <= _LARGEST_CROP for side in (height, width))
    if set(size) != {"height", "width"} or not right:
        raise ValueError(
            f"size: got height {height!r:.40} and width {width!r:.40}, expected whole numbers from 1 to "
            f"{_LARGEST_CROP}: {{'height': 224, 'width': 224}}, or 224 for both"
        )
    return CropSize(height, width)


def crop_plan(pixels: np.ndarray, points: np.ndarray | None, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """The matrix from image to crop and the face's landmarks in the image, the template's for `None`. All movements are
    one matrix, so that pixels are resampled once."""
    if points is not None and settings.do_align:
        return alignment_matrix(points, *settings.size, settings.alignment), points
    matrix = resize_matrix(*pixels.shape[1:], *settings.size)
    return matrix, template_landmarks(*pixels.shape[1:]) if points is None else points


def normalize_crops(crops: Sequence[np.ndarray], settings: Any) -> np.ndarray:
    """(crops, 3, height, width) float32 of crops from 0 to 255."""
    pixel_values = np.empty((len(crops), 3, *settings.size), np.float32)
    by_image = settings.do_normalize and settings.normalize_per_image
    if settings.do_normalize and not by_image:
        # In the pixels' own range: each crop is changed twice instead of three times.
        share = 1.0 / settings.rescale_factor if settings.do_rescale else 1.0
        levels = (settings.image_mean, settings.image_std)
        mean, std = ((np.array(values, np.float32) * np.float32(share)).reshape(-1, 1, 1) for values in levels)
    for place, crop in zip(pixel_values, crops, strict=True):  # crop by crop: a batch exceeds the CPU's cache
        place[:] = crop
        if settings.do_grayscale:
            place[:] = np.tensordot(np.array(GREY_WEIGHTS, np.float32), place, 1)
        if by_image:
            place -= place.mean()
            place /= place.std() + _FLAT
        elif settings.do_normalize:
            place -= mean
            place /= std
        elif settings.do_rescale:
            place *= settings.rescale_factor
    return pixel_values


# processing_mf2/detection.py


NETWORKS = {
    "face_detection_full_range.tflite": "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    "face_detection_short_range.tflite": "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
    "face_landmark.tflite": "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493",
}
"""SHA-256 by file name."""


MESH_TO_68 = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),  # jaw line
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),  # brows
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),  # nose
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),  # outer lips
    *(78, 82, 13, 312, 308, 317, 14, 87),  # inner lips
)


_OVERLAP = 0.3
"""Boxes of one face: intersection over union of MediaPipe's non-maximum suppression."""


_ATTEMPTS = (("full", 1.0), ("short", 1.0), ("short", 1.5))
"""Network and margin around the image until a face is found: the full range misses faces that fill the frame."""


_FAR, _LEAST_TILE = 1 / 6, 320
"""Faces that span less of the image's longer side have neighbours that the network no longer sees: then halves of the
image are searched as well, and halves of these, down to a side of so many pixels."""


_MESH_SIDE = 192


_PITCH = 4.0
"""Degrees that the network's mesh of a head that looks straight ahead leans down, by 240 rendered (synthetic) heads."""


_CROP = 1.5
"""Side of the mesh network's crop over the box's longer side."""


def network_folder() -> Path:
    """Where `mf2 setup` puts the networks: `mf2/mediapipe` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mf2" / "mediapipe"


_Box = tuple[float, np.ndarray, np.ndarray]
"""Score, box and the two eyes (2, 2)."""


class MediaPipeDetector:
    """Faces of images of any size. `detect` looks for them, `follow` places known ones anew in the next frame.

    min_score: least score of a box. min_presence: least answer of the mesh network to "is there a face?".
    """

    def __init__(self, *, min_score: float = 0.5, min_presence: float = 0.5):
        self.min_score, self.min_presence = min_score, min_presence

    def detect(self, images: Sequence[Any]) -> list[list[DetectedFace]]:
        """(3, height, width) images from 0 to 255, arrays or tensors -> the faces of each, largest first."""
        return [self._detect(_image_bytes(image)) for image in images]

    def follow(self, image: Any, faces: Sequence[DetectedFace]) -> list[DetectedFace | None]:
        """The faces of the frame before, placed in this one; None where a face is lost."""
        pixels = _image_bytes(image)
        crops = [
            (*_box_center(face.box), max(_box_size(face.box)) * _CROP, _eye_angle(face.landmarks)) for face in faces
        ]
        return [self._mesh(pixels, crop, face.score) for crop, face in zip(crops, faces, strict=True)]

    def _detect(self, pixels: np.ndarray) -> list[DetectedFace]:
        for range, margin in _ATTEMPTS:
            if faces := self._faces(pixels, _find_boxes(pixels, range, margin, self.min_score)):
                break
        parts, side = 1, max(pixels.shape[:2])
        while (not faces or max(_box_size(faces[0].box)) < _FAR * side) and side / 2 >= _LEAST_TILE:
            parts, side = 2 * parts, side / 2
            boxes = [(face.score, face.box, face.landmarks[[36, 45]]) for face in faces]
            for corner, tile in _tiles(pixels, parts):
                found = _find_boxes(tile, "full", 1.0, self.min_score)
                boxes += [(score, box + np.tile(corner, 2), eyes + corner) for score, box, eyes in found]
            faces = self._faces(pixels, sorted(boxes, key=lambda box: -box[0]))
        return faces

    def _faces(self, pixels: np.ndarray, boxes: Sequence[_Box]) -> list[DetectedFace]:
        """One face for each box that the mesh confirms, largest first; boxes: best first."""
        faces: list[DetectedFace] = []
        for score, box, ((x0, y0), (x1, y1)) in boxes:
            crop = (*_box_center(box), max(_box_size(box)) * _CROP, math.atan2(y1 - y0, x1 - x0))
            face = self._mesh(pixels, crop, score)
            known = np.array([other.box for other in faces]).reshape(-1, 4)
            if face is not None and (overlaps(known, face.box[None]) < _OVERLAP).all():
                faces.append(face)
        return sorted(faces, key=lambda face: -face.area)

    def _mesh(self, pixels: np.ndarray, crop: tuple[float, float, float, float], score: float) -> DetectedFace | None:
        """crop: x and y of its center, side, angle in radians."""
        x, y, side, angle = crop
        if not (math.isfinite(x + y + side + angle) and side >= 4):
            return None
        face, to_image = _turned_crop(pixels, x, y, side, angle)
        presence, points = _run_network("face_landmark.tflite", cv2.dnn.blobFromImage(face, 1 / 255))
        presence = 1 / (1 + math.exp(-float(np.clip(presence.flat[0], -50, 50))))
        if presence < self.min_presence:
            return None
        mesh = points.reshape(468, 3).astype(np.float64)
        mesh = np.column_stack([mesh[:, :2] @ to_image[:, :2].T + to_image[:, 2], mesh[:, 2] * side / _MESH_SIDE])
        low, high = mesh[:, :2].min(0), mesh[:, :2].max(0)
        landmarks = mesh[list(MESH_TO_68), :2]
        pitch, yaw, roll = head_pose(mesh)
        pose = (pitch + _PITCH, yaw, roll)
        return DetectedFace(np.concatenate([low, high]), score, landmarks, np.full(68, presence), pose=pose)


def head_pose(mesh: np.ndarray) -> tuple[float, float, float]:
    """Pitch, yaw and roll in degrees of a (468, 3) mesh in pixels (y down, z away from the camera).

    Zero looks straight into the camera; pitch grows as the head looks up, yaw as it turns to the image's right, roll
    as it leans clockwise in the image.
    """
    across = mesh[[263, 454]].mean(0) - mesh[[33, 234]].mean(0)  # from the image's left to its right
    down = mesh[152] - mesh[10]
    x = across / np.linalg.norm(across)
    y = down - (down @ x) * x
    y /= np.linalg.norm(y)
    z = np.cross(x, y)
    pitch, yaw, roll = math.atan2(-y[2], z[2]), math.asin(np.clip(x[2], -1, 1)), math.atan2(x[1], x[0])
    return math.degrees(pitch), math.degrees(yaw), math.degrees(roll)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of (n, 4) and (m, 4) boxes (left, top, right, bottom): (n, m)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)


def _tiles(pixels: np.ndarray, parts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Corner and pixels of overlapping squares, each 1.25 of the longer side's share."""
    height, width = pixels.shape[:2]
    side = math.ceil(1.25 * max(height, width) / parts)
    for top in _tile_starts(height, side):
        for left in _tile_starts(width, side):
            yield np.array([left, top]), pixels[top : top + side, left : left + side]


def _tile_starts(length: int, side: int) -> list[int]:
    count = max(1, math.ceil((length - 0.2 * side) / (0.8 * side)))
    return np.linspace(0, max(0, length - side), count).astype(int).tolist()


def _find_boxes(pixels: np.ndarray, range: str, margin: float, min_score: float) -> list[_Box]:
    """Best first, in pixels of the image."""
    side, anchors = _box_anchors(range)
    height, width = pixels.shape[:2]
    scale = margin * max(height, width) / side
    size = max(1, round(width / scale)), max(1, round(height / scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    small = cv2.copyMakeBorder(small, top, side - size[1] - top, left, side - size[0] - left, cv2.BORDER_CONSTANT)
    blob = cv2.dnn.blobFromImage(small, 1 / 127.5, mean=(127.5, 127.5, 127.5))
    logits, values = (output[0] for output in _run_network(f"face_detection_{range}_range.tflite", blob))
    good = np.flatnonzero(logits[:, 0] > math.log(min_score / (1 - min_score)))
    good = good[np.isfinite(values[good]).all(1)]
    scores = 1 / (1 + np.exp(-np.clip(logits[good, 0].astype(np.float64), -50, 50)))
    points = values[good].reshape(len(good), 8, 2).astype(np.float64)
    points[:, 1] /= 2  # half the box's size
    points[:, [0, 2, 3]] += anchors[good][:, None]
    center, half = points[:, 0], points[:, 1]
    boxes = np.concatenate([center - half, center + half], axis=1)
    shared = overlaps(boxes, boxes) >= _OVERLAP
    border, faces, left_over = np.array([left, top]), [], (half > 0).all(1)
    for best in np.argsort(-scores, kind="stable"):
        if left_over[best]:
            # MediaPipe's suppression: the mean of all boxes of one face, weighted by their scores.
            same = np.flatnonzero(shared[best])
            weights = scores[same] / scores[same].sum()
            box = (weights @ boxes[same] - np.tile(border, 2)) * scale
            eyes = (np.tensordot(weights, points[same][:, 2:4], 1) - border) * scale
            faces.append((float(scores[best]), box, eyes))
            left_over &= ~shared[best]
    return faces


@lru_cache
def _box_anchors(range: str) -> tuple[int, np.ndarray]:
    """Side of the network's input, and the center of each of its boxes in pixels of it."""
    side, strides = (192, (4,)) if range == "full" else (128, (8, 8, 16, 16, 16, 16, 16, 16))
    centers = []
    for stride in dict.fromkeys(strides):
        grid = (np.stack(np.mgrid[: side // stride, : side // stride][::-1], -1).reshape(-1, 2) + 0.5) * stride
        centers.append(np.repeat(grid, strides.count(stride), axis=0))
    return side, np.concatenate(centers)


def _turned_crop(pixels: np.ndarray, x: float, y: float, side: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The turned square of an image as the mesh network's input, and the (2, 3) map from its pixels to the image's."""
    scale, half = side / _MESH_SIDE, _MESH_SIDE / 2
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    to_image = np.array([[cos, -sin, x - half * (cos - sin)], [sin, cos, y - half * (sin + cos)]])
    warp, step = to_image.copy(), int(scale)
    if step > 1:  # block means first: interpolation alone would skip pixels
        low = np.clip(np.floor([x - 0.75 * side, y - 0.75 * side]), 0, None).astype(int)
        region = pixels[low[1] : math.ceil(y + 0.75 * side), low[0] : math.ceil(x + 0.75 * side)]
        height, width = region.shape[0] // step, region.shape[1] // step
        if height and width:
            pixels = cv2.resize(region[: height * step, : width * step], (width, height), interpolation=cv2.INTER_AREA)
            warp[:, 2] -= low
            warp /= step
    warp[:, 2] += 0.5 * (warp[:, 0] + warp[:, 1]) - 0.5  # OpenCV puts a pixel's center at a whole number
    face = cv2.warpAffine(pixels, warp, (_MESH_SIDE, _MESH_SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return face, to_image


_NETWORKS = threading.local()
"""OpenCV's networks hold their activations: each thread has its own."""


def _run_network(name: str, blob: np.ndarray) -> list[np.ndarray]:
    """Outputs in the order of their shapes' sizes: scores before boxes, presence before points."""
    path = network_folder() / name
    networks = _NETWORKS.__dict__.setdefault("networks", {})
    if path not in networks:
        networks[path] = _read_network(path)
    network = networks[path]
    network.setInput(blob)
    return sorted(network.forward(network.getUnconnectedOutLayersNames()), key=lambda output: output.size)


def _read_network(path: Path) -> cv2.dnn.Net:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OSError(f"{path} could not be read ({error}); `mf2 setup` puts it there") from error
    got, expected = hashlib.sha256(content).hexdigest(), NETWORKS[path.name]
    if got != expected:
        raise OSError(f"{path}: got SHA-256 {got[:12]}..., expected {expected[:12]}...; run `mf2 setup` again")
    # OpenCV's newer engine drops these networks' second output.
    return cv2.dnn.readNetFromTFLite(str(path), engine=cv2.dnn.ENGINE_CLASSIC)


def _image_bytes(image: Any) -> np.ndarray:
    """(3, height, width) -> (height, width, 3) bytes."""
    image = image.cpu().numpy() if is_tensor(image) else image
    if image.dtype != np.uint8:
        image = image.round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def _box_center(box: np.ndarray) -> tuple[float, float]:
    return float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2


def _box_size(box: np.ndarray) -> tuple[float, float]:
    return float(box[2] - box[0]), float(box[3] - box[1])


def _eye_angle(landmarks: np.ndarray) -> float:
    x, y = landmarks[45] - landmarks[36]
    return math.atan2(y, x)


DETECTORS = {"face_alignment": FaceAlignmentDetector, "mediapipe": MediaPipeDetector}
"""`landmark_source` -> its detector."""


# processing_mf2/image_processing_mf2.py


logger = logging.get_logger(__name__)


_SETTINGS = {"": dict, "image_processor_type": str, "auto_map": dict}


_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "processor_config.json": {
        **{"": dict, "processor_class": str, "auto_map": dict},
        **{f"image_processor.{name}".rstrip("."): kind for name, kind in _SETTINGS.items()},
    },
    "preprocessor_config.json": _SETTINGS,
    "tokenizer_config.json": {
        **{"": dict, "tokenizer_class": str, "processor_class": str, "auto_map": dict, "added_tokens_decoder": dict},
        **{"do_lower_case": bool, "tokenize_chinese_chars": bool, "strip_accents": (bool, type(None))},
        **{f"{name}_token": (str, dict, type(None)) for name in ("bos", "cls", "sep", "pad", "unk", "mask")},
    },
    "tokenizer.json": {"": dict},
}


_NAMES = {dict: "an object", str: "text", bool: "true or false", type(None): "null"}


_SENTENCE = re.compile(r"[\w.\[\]/-]+(, \w+)*: .*(got|expected|there is no)", re.DOTALL)


def _named_error(source: Any, error: Exception, where: dict[str, Any]) -> Exception:
    """An error of loading a processor as one that names file and field; our own errors stay as they are."""
    if isinstance(error, ValueError | TypeError) and _SENTENCE.match(str(error)):
        return type(error)(f"{source}: {error}") if type(error) in (ValueError, TypeError) else error
    wrong = next(_wrong_fields(source, where), None)
    if wrong is None:
        wrong = f"processor_config.json, tokenizer_config.json or tokenizer.json: {type(error).__name__}: {error}"
    return ValueError(f"{source}: {wrong}; download the file again, or save the processor anew with save_pretrained")


def _wrong_fields(source: Any, where: dict[str, Any]) -> Iterator[str]:
    names = ("revision", "token", "cache_dir", "subfolder")
    where = {name: where[name] for name in names if where.get(name) is not None}
    for file, fields in _FIELDS.items():
        try:
            path = cached_file(source, file, local_files_only=True, **where)
        except OSError:  # absent
            continue
        try:
            content = read_json(path)
        except ValueError as error:
            yield str(error).replace(path, file)
            continue
        for field, kinds in fields.items():
            value, missing = content, False
            for name in field.split(".") if field else ():
                missing = missing or not isinstance(value, dict) or name not in value
                value = None if missing else value[name]
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            if not missing and not isinstance(value, kinds):
                expected = " or ".join(_NAMES[kind] for kind in kinds)
                yield f"{file}: {field or 'its content'}: got {value!r:.80}, expected {expected}"


class CheckedFilesMixin(SelfContainedMixin):
    """Damaged files of a processor raise an error that names file and field."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except OSError:
            raise
        except Exception as error:  # tokenizers and transformers raise anything on damaged files
            raise _named_error(pretrained_model_name_or_path, error, kwargs) from error


class MF2ImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_align (`bool`): align the face to the canonical one by rotation, scale and shift; `False`: resize the image.
    alignment (`str`): what is brought to its place: `"steady"`: nose, eyes and sides of the face; `"five_points"`: the
        corners of the eyes and the base of the nose, which expressions move least.
    do_grayscale (`bool`): three equal channels, so that grey and coloured photographs are one.
    normalize_per_image (`bool`): each crop by its own mean and deviation, not by `image_mean` and `image_std`.
    landmark_source (`str`): landmarks of an image for which none are given. `"template"`: the image is a ready-aligned
        crop with the mean face's landmarks; `"insightface112"`, `"ffhq"`: a crop as those align it, which is brought to
        MF²'s own; `"mediapipe"`: detected by the networks that `mf2 setup` fetches;
        `"face_alignment"`: by the face-alignment package, which downloads its weights at the first use; `"given"`: they
        are required.
    on_no_face (`str`): `"raise"`, `"template"` or `"skip"` if no face is detected.
    on_many_faces (`str`): `"largest"` or `"all"` if several are.
    face_alignment_kwargs (`dict`): settings of [`FaceAlignmentDetector`], such as its device.
    max_pixels (`int`): a larger image is refused before it is decoded (see `read_image`).
    allow_url (`bool`), timeout (`float`): fetch images given by URL, within so many seconds.
    return_landmark_source (`bool`): also return each row's `landmark_source` and `image_index` (the image it was cut
        from).
    return_faces (`bool`): also return `faces`, a dict a row: box and landmarks in the image.
    """

    do_align: bool | None
    alignment: Alignment | None
    do_grayscale: bool | None
    normalize_per_image: bool | None
    landmark_source: LandmarkSource | None
    on_no_face: NoFacePolicy | None
    on_many_faces: ManyFacesPolicy | None
    face_alignment_kwargs: dict | None
    max_pixels: int | None
    allow_url: bool | None
    timeout: float | None
    return_landmark_source: bool | None
    return_faces: bool | None


# In a processor's file, but no settings.
_SAVED_BESIDE = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}


_OF_A_CALL = {"landmarks", "augment", "augment_seed", "sample_index"}


class Augmentation(Protocol):
    """`MF2Augmentation` is one; it does not travel with a checkpoint."""

    def draw(self, seed: int, index: int) -> Any:
        """An object whose `cut(warp, pixels, points, matrix, height, width)` returns a crop and its landmarks."""


@dataclass(frozen=True)
class _Row:
    crop: np.ndarray
    points: np.ndarray
    source: str
    image_index: int
    face: dict[str, Any] | None


class _AlignedCrops(CheckedFilesMixin):
    """`image_processor(images, landmarks)` -> `pixel_values` (batch, 3, height, width), `landmarks` (batch, 68, 2).

    Landmarks are in pixels of their image: given ones in those of the input (EXIF rotation applied), returned ones in
    those of the crop; x and y count from the upper left edge, so the first pixel's centre is at 0.5. Given landmarks
    take precedence over `landmark_source`.
    """

    hub_auto_classes = ("AutoImageProcessor",)
    valid_kwargs = MF2ImageProcessorKwargs
    model_input_names = ["pixel_values", "landmarks"]

    size = {"height": 224, "width": 224}
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    resample = PILImageResampling.BILINEAR
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_align = True
    alignment: Alignment = "steady"
    do_grayscale = False
    normalize_per_image = False
    landmark_source: LandmarkSource = "template"
    on_no_face: NoFacePolicy = "raise"
    on_many_faces: ManyFacesPolicy = "largest"
    face_alignment_kwargs = None
    max_pixels = MOST_PIXELS
    allow_url = False
    timeout = None
    return_landmark_source = False
    return_faces = False

    def __init__(self, **kwargs: Unpack[MF2ImageProcessorKwargs]) -> None:
        known = set(self.valid_kwargs.__annotations__)
        check_names(set(kwargs) - _SAVED_BESIDE, known, type(self).__name__)
        self.resolved_settings(kwargs)  # before transformers fails on them without a name
        super().__init__(**kwargs)

    def resolved_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of a call that is given these."""
        usual = {name: getattr(self, name, None) for name in self.valid_kwargs.__annotations__}
        return check_settings({**usual, **{name: value for name, value in given.items() if value is not None}})

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From a file's content, without the caller's own settings; unknown fields are kept, unless one is close to the
        name of a setting."""
        if not isinstance(image_processor_dict, dict):
            raise ValueError(
                f"image_processor: got {type(image_processor_dict).__name__}, expected an object of settings; save the "
                "processor again, or delete the entry"
            )
        settings, known = {}, set(cls.valid_kwargs.__annotations__)
        beside: dict[str, Any] = {}
        for name, value in image_processor_dict.items():
            if name in known | _SAVED_BESIDE:
                if name not in CALLERS_OWN:
                    settings[name] = value
            elif difflib.get_close_matches(name, known, n=1, cutoff=0.8):
                check_names([name], known, cls.__name__)
            else:
                beside[name] = value
        if beside:
            logger.warning_once(f"{cls.__name__}: {sorted(beside)} of its file are no settings; kept without effect.")
        made = super().from_dict(settings, **kwargs)
        processor = made[0] if isinstance(made, tuple) else made
        for name, value in beside.items():
            if not hasattr(processor, name):
                setattr(processor, name, value)
        return made

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        return cls.from_dict(read_json(json_file))

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name not in CALLERS_OWN}

    def preprocess(
        self,
        images: ImageInput,
        landmarks: Any = None,
        *,
        augment: Augmentation | None = None,
        augment_seed: int = 0,
        sample_index: Sequence[int] | None = None,
        **kwargs: Unpack[MF2ImageProcessorKwargs],
    ) -> BatchFeature:
        r"""
        images: one or many PIL images, paths, bytes, arrays or tensors (see `read_image`).
        landmarks: (68, 2) for one image, (images, 68, 2), or a list with `None` for images without.
        augment: for training, an [`MF2Augmentation`]. Its draws depend only on `augment_seed` and the image's
            `sample_index` (its place in the call unless given): give each epoch a new seed.
        """
        check_names(kwargs, set(self.valid_kwargs.__annotations__) | _OF_A_CALL, type(self).__name__)
        settings = SimpleNamespace(**self.resolved_settings(kwargs))
        images = flatten_images(images)
        if not images:
            raise ValueError("images: got an empty list, expected at least one image")
        given = landmarks_per_image(landmarks, len(images))
        draws = _draws(augment, augment_seed, sample_index, len(images))
        rows = [row for image_rows in self._rows(images, given, draws, settings) for row in image_rows]
        device = settings.device or (images[0].device if is_tensor(images[0]) else None)
        return self._to_batch(rows, settings, device)

    def _rows(
        self, images: list[Any], given: list[Any], draws: list[Any], settings: SimpleNamespace
    ) -> list[list[_Row]]:
        """The faces of each image, cut out."""
        places = [f"[{index}]" for index in range(len(images))] if len(images) > 1 else [""]
        rows: list[list[_Row]] = [[] for _ in images]
        searched: dict[int, np.ndarray] = {}  # kept, so that faces are detected in one batch

        def cut(index: int, pixels: np.ndarray, points: Any, source: str, found: DetectedFace | None = None) -> None:
            if points is not None:
                name = f"landmarks{places[index]}" if found is None else f"landmarks found in images{places[index]}"
                points = check_landmarks(points, *pixels.shape[1:], name)
                if found is None:
                    check_orientation(points, name)
            face = face_in_image(*pixels.shape[1:], points, source, found) if settings.return_faces else None
            if points is None and source != "template":
                points = template_landmarks(*pixels.shape[1:], source)
            rows[index].append(_Row(*self._cut(pixels, points, draws[index], settings), source, index, face))

        limits = {name: getattr(settings, name) for name in CALLERS_OWN}
        for index, (image, place) in enumerate(zip(images, places, strict=True)):
            pixels = read_image(image, name=f"images{place}", **limits)
            if given[index] is not None:
                cut(index, pixels, given[index], "given")
            elif settings.landmark_source in DETECTORS:
                searched[index] = pixels
            elif settings.landmark_source in TEMPLATES:
                _warn_if_no_crop(pixels, settings.size)
                cut(index, pixels, None, settings.landmark_source)
            else:
                raise ValueError(f"landmarks{place}: got none, but landmark_source='given' requires them")
        if searched:
            with_settings = settings.landmark_source == "face_alignment" and settings.face_alignment_kwargs
            detector = DETECTORS[settings.landmark_source](**(with_settings or {}))
            policy = {"on_no_face": settings.on_no_face, "on_many_faces": settings.on_many_faces}
            for (index, pixels), faces in zip(searched.items(), detector.detect(list(searched.values())), strict=True):
                chosen = choose_faces(faces, **policy, name=f"images{places[index]}")
                if chosen is None:
                    cut(index, pixels, None, "template")
                for face in chosen or ():
                    cut(index, pixels, face.landmarks, settings.landmark_source, face)
        return rows

    def _cut(
        self, pixels: np.ndarray, points: np.ndarray | None, draw: Any, settings: SimpleNamespace
    ) -> tuple[np.ndarray, np.ndarray]:
        matrix, points = crop_plan(pixels, points, settings)
        if draw is None:
            return self.warp(pixels, matrix, *settings.size), transform_points(matrix, points)
        return draw.cut(self.warp, pixels, points, matrix, *settings.size)

    def _to_batch(self, rows: list[_Row], settings: SimpleNamespace, device: Any) -> BatchFeature:
        data: dict[str, Any] = {
            "pixel_values": normalize_crops([row.crop for row in rows], settings),
            "landmarks": np.array([row.points for row in rows], dtype=np.float32).reshape(-1, 68, 2),
        }
        if settings.return_landmark_source:
            data["image_index"] = np.array([row.image_index for row in rows], dtype=np.int64)
        if settings.return_tensors not in ("np", TensorType.NUMPY):
            data = {name: torch.from_numpy(values) for name, values in data.items()}
            data |= {name: data[name].to(device) for name in self.model_input_names}
        if settings.return_landmark_source:
            data["landmark_source"] = [row.source for row in rows]
        if settings.return_faces:
            data["faces"] = [row.face for row in rows]
        return BatchFeature(data)


class MF2ImageProcessor(_AlignedCrops, TorchvisionBackend):
    __doc__ = _AlignedCrops.__doc__

    warp = staticmethod(warp)


class MF2ImageProcessorPil(_AlignedCrops, PilBackend):
    """As [`MF2ImageProcessor`], by PIL alone: without torchvision and OpenCV. Crops differ by 0.01."""

    warp = staticmethod(warp_by_pil)


def _draws(augment: Augmentation | None, seed: int, sample_index: Sequence[int] | None, count: int) -> list[Any]:
    if augment is None:
        return [None] * count
    if not hasattr(augment, "draw"):
        raise TypeError(f"augment: got {type(augment).__name__}, expected an MF2Augmentation")
    indexes = range(count) if sample_index is None else [int(index) for index in sample_index]
    if len(indexes) != count:
        raise ValueError(f"sample_index: got {len(indexes)} indexes, expected {count}, one for each image")
    return [augment.draw(seed, index) for index in indexes]


def _warn_if_no_crop(pixels: np.ndarray, size: CropSize) -> None:
    height, width = pixels.shape[1:]
    if not 0.8 < (width / height) / (size.width / size.height) < 1.25:
        logger.warning_once(
            "An image came without landmarks and is taken as a ready-aligned crop, but its sides differ much from the "
            "crop's. If it is a photograph, give landmarks or set landmark_source='mediapipe'."
        )


# processing_mf2/reliability.py


GRADES = ("reliable", "usable", "experimental")


CANNOT_TELL = "cannot tell"


Cuts = Mapping[str, Any]
"""For each emotion the lowest probability of faces that show it; for each AU that, and the highest of faces at rest."""


def check_grades(grades: Any, labels: Sequence[str]) -> dict[str, str] | None:
    """Label -> one of `GRADES`; a label that has none was not measured, and is experimental."""
    if grades is None:
        return None
    if not isinstance(grades, Mapping) or (wrong := set(grades) - set(labels)):
        got = sorted(wrong) if isinstance(grades, Mapping) else type(grades).__name__
        raise ValueError(f"grades: got {got!r:.80}, expected grades of {list(labels)}")
    if wrong := [grade for grade in grades.values() if grade not in GRADES]:
        raise ValueError(f"grades: got {wrong[0]!r:.40}, expected one of {list(GRADES)}")
    return {label: grades.get(label, GRADES[-1]) for label in labels}


def check_conformal(conformal: Any, action_units: Sequence[str], emotions: Sequence[str]) -> dict[str, Cuts] | None:
    """Confidence level -> cuts of every label."""
    if conformal is None:
        return None
    if not isinstance(conformal, Mapping) or not conformal:
        raise ValueError(f"conformal: got {conformal!r:.80}, expected cuts by confidence level")
    for level, cuts in conformal.items():
        try:
            numbers = {unit: list(cuts[unit]) for unit in action_units} | {name: [cuts[name]] for name in emotions}
            good = 0 < float(level) < 1 and all(len(numbers[unit]) == 2 for unit in action_units)
            good = good and all(0 <= cut <= 1 for label in numbers.values() for cut in label)
        except (TypeError, ValueError, LookupError) as error:
            raise ValueError(f"conformal[{level!r}]: {error!r:.80}, expected cuts of every label") from error
        if not good:
            raise ValueError(f"conformal[{level!r}]: expected a level between 0 and 1, and two cuts an AU, of 0 to 1")
    return {str(level): dict(cuts) for level, cuts in conformal.items()}


def conformal_cuts(confidence: float | None, conformal: Mapping[str, Cuts] | None) -> Cuts | None:
    """The cuts of the lowest calibrated level that is at least `confidence`."""
    if confidence is None:
        return None
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence!r:.40}, expected a number between 0 and 1, such as 0.9")
    if conformal is None:
        raise ValueError(
            "confidence: this checkpoint is not calibrated (no `conformal` in its processor_config.json), expected one "
            "that is: train.py calibrates on validation people; or leave confidence out"
        )
    levels = sorted((float(level), level) for level in conformal)
    enough = [level for value, level in levels if value >= confidence - 1e-9]
    if not enough:
        known = ", ".join(level for _, level in levels)
        raise ValueError(f"confidence: got {confidence}, expected at most {levels[-1][1]}; it is calibrated at {known}")
    return conformal[enough[0]]


def conformal_state(probability: float, threshold: float, cuts: Sequence[float]) -> str:
    """Of faces that show an AU at most 1 - confidence are called at rest, and of faces at rest so many active.

    It never contradicts the decision at the threshold: there it cannot tell.
    """
    active, at_rest = probability >= cuts[0], probability <= cuts[1]
    if active == at_rest or active != (probability >= threshold):
        return CANNOT_TELL
    return "active" if active else "at rest"


def emotion_set(probabilities: Mapping[str, float], cuts: Cuts) -> list[str]:
    """Emotions that cannot be ruled out, the most probable first; that one is always among them."""
    first, *others = sorted(probabilities, key=lambda name: -probabilities[name])
    return [first, *(name for name in others if probabilities[name] >= cuts[name])]


def add_reliability(result: dict[str, Any], grades: Mapping[str, str] | None, cuts: Cuts | None) -> dict[str, Any]:
    """Grades, and with `cuts` each AU's `state` and the face's `emotion_set`."""
    for name, unit in result.get("action_units", {}).items():
        if grades is not None:
            unit["grade"] = grades[name]
        if cuts is not None:
            unit["state"] = conformal_state(unit["probability"], unit["threshold"], cuts[name])
    if "emotions" in result:
        if grades is not None:
            result["emotion_grade"] = grades[result["emotion"]]
        if cuts is not None:
            result["emotion_set"] = emotion_set(result["emotions"], cuts)
    return result


# processing_mf2/results.py


Thresholds = float | Sequence[float] | Mapping[str, float] | None


ANSWERS = ("emotion_logits", "au_logits", "au_side_logits", "au_intensities")
"""Outputs of a model that results are made of; few models have the last two."""


class NotFiniteError(ValueError):
    """A model answered with NaN or an infinite value."""


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().float().cpu() if is_tensor(values) else values)


def check_finite(values: Any, name: str) -> None:
    """NaN is below every threshold: without this check it would read "Neutral, no AU"."""
    values = _array(values)
    if not np.isfinite(values).all():
        raise NotFiniteError(
            f"{name}: got {values[~np.isfinite(values)][0]} from the model, expected finite numbers; its weights are "
            "damaged, or its precision is too low: load it again, in float32"
        )


def resolve_thresholds(
    thresholds: Thresholds, action_units: Sequence[str], usual: Sequence[float] | None = None, name: str = "thresholds"
) -> list[float]:
    """One threshold an AU, from one for all, one each, or some by name; the rest from `usual`, or 0.5."""
    usual = [0.5] * len(action_units) if usual is None else list(usual)
    if thresholds is None:
        values = usual
    elif isinstance(thresholds, Mapping):
        unknown = sorted(set(thresholds) - set(action_units))
        if unknown or not thresholds:
            raise ValueError(f"{name}: got {unknown}, expected names among {list(action_units)}")
        values = [thresholds.get(unit, value) for unit, value in zip(action_units, usual, strict=True)]
    elif isinstance(thresholds, int | float):
        values = [thresholds] * len(action_units)
    else:
        values = list(thresholds) if isinstance(thresholds, Iterable) else [thresholds]
    try:
        values = [float(value) for value in values]
    except (TypeError, ValueError):
        values = [repr(value)[:40] for value in values]
    if len(values) != len(action_units) or not all(isinstance(value, float) and 0 <= value <= 1 for value in values):
        raise ValueError(
            f"{name}: got {values}, expected {len(action_units)} numbers from 0 to 1, one for each of "
            f"action_units {list(action_units)}"
        )
    return values


def _answers(outputs: Any, name: str, labels: Sequence[str], sides: tuple[int, ...] = ()) -> np.ndarray | None:
    values = outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)
    if values is None:
        return None
    values = _array(values).astype(np.float32)
    if values.ndim != 2 + len(sides) or values.shape[1:] != (len(labels), *sides):
        expected = ", ".join(map(str, ("batch", len(labels), *sides)))
        raise ValueError(
            f"{name}: got shape {values.shape}, expected ({expected}) for {list(labels)}; load the "
            "processor of the model's own checkpoint, or make one by MF2Processor.for_model(model.config)"
        )
    check_finite(values, name)
    return values


def _probabilities(
    outputs: Any, name: str, labels: Sequence[str], sides: tuple[int, ...] = ()
) -> list[list[float]] | None:
    logits = _answers(outputs, name, labels, sides)
    if logits is None:
        return None
    if name == "emotion_logits":
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        return (shares / shares.sum(-1, keepdims=True)).tolist()
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-logits))).tolist()


class FaceResults:
    """Of labels and thresholds; a base of `MF2Processor`."""

    action_units: list[str]
    emotions: list[str]
    au_thresholds: list[float] | None
    grades: dict[str, str] | None = None
    conformal: dict[str, Any] | None = None

    def thresholds(self, given: Thresholds = None) -> list[float]:
        """One threshold an AU: given (one for all, one each, or by name), else this processor's, else 0.5."""
        return resolve_thresholds(given, self.action_units, self.au_thresholds)

    def post_process_face_analysis(
        self,
        outputs: Any,
        thresholds: Thresholds = None,
        image_index: Sequence[int] | None = None,
        confidence: float | None = None,
    ) -> list[dict[str, Any]]:
        """Named results, a dict a face, from `emotion_logits` (batch, emotion) and `au_logits` (batch, AU); what the
        model did not predict is absent. Of `au_side_logits` and `au_intensities` each action unit has the probabilities
        `left` and `right` (the person's sides) and its `intensity` from 0 to 5.

        image_index: as returned with `return_landmark_source=True`; each result then names its image.
        confidence: adds each AU's `state` (active, at rest, cannot tell) and `emotion_set`, by conformal prediction.
        """
        limits, cuts = self.thresholds(thresholds), conformal_cuts(confidence, self.conformal)
        emotion_rows = _probabilities(outputs, "emotion_logits", self.emotions)
        au_rows = _probabilities(outputs, "au_logits", self.action_units)
        side_rows = _probabilities(outputs, "au_side_logits", self.action_units, (2,))
        intensities = _answers(outputs, "au_intensities", self.action_units)
        if emotion_rows is None and au_rows is None:
            raise ValueError("outputs: got neither emotion_logits nor au_logits, expected those of a face analysis")
        count = len(emotion_rows if au_rows is None else au_rows)
        if image_index is not None and len(image_index) != count:
            raise ValueError(f"image_index: got {len(image_index)}, expected {count}, one for each face")
        results: list[dict[str, Any]] = []
        for row in range(count):
            result = {} if image_index is None else {"image_index": int(image_index[row])}
            if emotion_rows is not None:
                named = dict(zip(self.emotions, emotion_rows[row], strict=True))
                result |= {"emotion": max(named, key=named.get), "emotions": named}
            if au_rows is not None:
                units = {
                    au: {"name": ACTION_UNITS[au].noun, "probability": p, "threshold": limit, "active": p >= limit}
                    for au, p, limit in zip(self.action_units, au_rows[row], limits, strict=True)
                }
                for au, (left, right) in zip(units, side_rows[row] if side_rows else (), strict=False):
                    units[au] |= {"left": left, "right": right}
                for au, intensity in zip(units, () if intensities is None else intensities[row].tolist(), strict=False):
                    units[au]["intensity"] = intensity
                result |= {"action_units": units, "active_action_units": [au for au in units if units[au]["active"]]}
            results.append(add_reliability(result, self.grades, cuts))
        return results


# processing_mf2/wording.py


KEY_AU_PROMPT = "Key action units:"
"""Every key-AU caption begins with it, so that one decoder can be asked for this kind of caption."""


EMOTION_SENTENCE = "The face shows {emotion}."


@dataclass(frozen=True)
class AUWording:
    active: tuple[str, ...]
    rest: tuple[str, ...]
    """Very short: the sentences of an image share one budget of tokens."""
    cue: str
    """A noun phrase, with an article exactly if it is singular."""
    trace: str
    """A further trace of the action; second sentence of a local description."""


# AU | active; ... | at rest; ... | cue | trace
_AU_TABLE = """
AU1 | the inner ends of the brows are lifted; the brows rise at their inner ends; the inner brows move up |
    the inner brows rest; the inner brows stay down | raised inner brows | short lines cross the middle of the forehead
AU2 | the outer ends of the brows are lifted; the brows arch at their outer ends; the outer brows move up |
    the outer brows rest; the outer brows stay down | raised outer brows | lines cross the sides of the forehead
AU4 | the brows are drawn down and together; the brows are lowered and knit; the brows sink toward the eyes |
    the brows are not lowered; the brows stay apart | lowered brows | upright lines appear between the brows
AU5 | the upper lids are raised; the eyes are opened wide; the upper lids pull back from the eyes |
    the upper lids rest; the upper lids are not raised | wide open eyes | more white shows above the iris
AU6 | the cheeks are raised toward the eyes; the cheeks bunch under the eyes; the cheeks are pushed up |
    the cheeks rest; the cheeks stay flat | raised cheeks | small lines fan out beside the eyes
AU7 | the eyelids are tightened; the lids narrow the eyes; the lower lids are tense |
    the eyelids rest; the eyelids are loose | tight eyelids | the opening of the eyes becomes narrow
AU8 | the lips are drawn toward each other; both lips move closer; the lips approach in front of the teeth |
    the lips keep their distance; the lips do not approach | lips drawn together | the gap between the lips shrinks
AU9 | the nose is wrinkled; the skin of the nose is drawn up; wrinkles cross the root of the nose |
    the nose rests; the nose is smooth | a wrinkled nose | folds form along the sides of the nose
AU10 | the upper lip is raised; the upper lip is lifted in its middle; the upper lip moves toward the nose |
    the upper lip rests; the upper lip is not raised | a raised upper lip | the wings of the nose lift
AU11 | the folds beside the nose are deep; the fold from nose to mouth deepens; deep lines leave the nostrils |
    the nose folds rest; the nose folds are shallow | deep nose folds | the skin above the upper lip is drawn aside
AU12 | the lip corners are pulled up; the mouth corners rise in a smile; the lip corners move up and back |
    the lip corners are not raised; the mouth does not smile | raised lip corners | the folds of the cheeks grow deeper
AU14 | the lip corners are tightened inward; the mouth corners press in; dimples appear beside the mouth |
    no dimples show; the mouth corners are loose | dimpled mouth corners | small pits form in the cheeks
AU15 | the lip corners are pulled down; the mouth corners sink; the corners of the mouth turn down |
    the lip corners are not lowered; the mouth corners do not sink | lowered lip corners |
    the line between the lips bends down
AU16 | the lower lip is pulled down; the lower lip bares the teeth; the lower lip moves toward the chin |
    the lower lip rests; the lower lip is not lowered | a lowered lower lip | the lower teeth may show
AU17 | the chin is pushed up; the chin rises and wrinkles; the chin pushes the lower lip up |
    the chin rests; the chin is smooth | a raised chin | the skin of the chin looks rough
AU18 | the lips are puckered; the lips gather as for a kiss; the mouth is drawn small and forward |
    the lips do not pucker; the lips are not gathered | puckered lips | small lines run around the mouth
AU19 | the tongue shows between the lips; the tongue sticks out; the tip of the tongue is visible |
    the tongue is hidden; the tongue stays inside | a visible tongue | the lips open around the tongue
AU20 | the lips are stretched sideways; the mouth is pulled toward the ears; the lips are drawn straight back |
    the lips are not stretched; the mouth keeps its width | stretched lips | the lips look flat and long
AU21 | the neck is tightened; the muscles of the neck stand out; the skin of the neck is tense |
    the neck rests; the neck is loose | a tight neck | cords show under the jaw
AU22 | the lips are funneled forward; the lips turn out like a funnel; the lips are pushed out and round |
    the lips are not funneled; the lips do not turn out | funneled lips | the inner side of the lips shows
AU23 | the lips are tightened; the lips are tense and narrow; the red of the lips grows thin |
    the lips are not tight; the lips are soft | tight lips | fine lines edge the lips
AU24 | the lips are pressed together; the lips push against each other; the mouth is shut with pressure |
    the lips are not pressed; no pressure holds the lips | pressed lips | skin bulges above and below the lips
AU25 | the lips are parted; the lips are open; a gap shows between the lips |
    the lips are not parted; the lips are closed | parted lips | the teeth or the inside of the mouth may show
AU26 | the jaw is dropped; the jaw hangs down; the lower jaw sinks |
    the jaw rests; the jaw is not dropped | a dropped jaw | the lower face looks longer
AU27 | the mouth is stretched wide open; the mouth gapes; the jaw is pulled far down |
    the mouth does not gape; the mouth is not stretched | a gaping mouth | the cheeks are drawn flat
AU28 | the lips are sucked in; the lips roll over the teeth; the lips vanish into the mouth |
    the lips are not sucked in; the lips do not roll in | lips rolled inward | the skin around the mouth is pulled tight
AU43 | the eyes are closed; the upper lids cover the eyes; the eyelids are shut |
    the eyes are open; the eyes are not closed | closed eyes | nothing of the iris can be seen
"""


def _read_table() -> dict[str, AUWording]:
    wordings = {}
    for entry in re.split(r"\n(?=AU\d)", _AU_TABLE.strip()):
        name, active, rest, cue, trace = (" ".join(cell.split()) for cell in entry.split("|"))
        wordings[name] = AUWording(tuple(active.split("; ")), tuple(rest.split("; ")), cue, trace)
    return wordings


AU_WORDING: dict[str, AUWording] = _read_table()


@dataclass(frozen=True)
class EmotionWording:
    phrase: str
    """Object of "the face shows ..."."""
    forms: tuple[str, ...]
    """Words that name it in a text, besides its own name."""
    typical: tuple[str, ...] = ()
    """Prototypical action units, as in EMFACS, with the lips that part with the jaw."""


EMOTION_WORDING: dict[str, EmotionWording] = {
    "Neutral": EmotionWording("a neutral expression", ("neutral",)),
    "Anger": EmotionWording("anger", ("angry",), ("AU4", "AU5", "AU7", "AU17", "AU23", "AU24")),
    "Disgust": EmotionWording("disgust", ("disgusted",), ("AU9", "AU10", "AU15", "AU16", "AU17")),
    "Fear": EmotionWording(
        "fear", ("fearful", "afraid", "scared"), ("AU1", "AU2", "AU4", "AU5", "AU7", "AU20", "AU25", "AU26")
    ),
    "Happiness": EmotionWording("happiness", ("happy", "joy", "joyful"), ("AU6", "AU12")),
    "Sadness": EmotionWording("sadness", ("sad",), ("AU1", "AU4", "AU15", "AU17")),
    "Surprise": EmotionWording("surprise", ("surprised",), ("AU1", "AU2", "AU5", "AU25", "AU26", "AU27")),
    "Contempt": EmotionWording("contempt", ("contemptuous",), ("AU12", "AU14")),
    # "other" alone stands in many a sentence about lips, so it never names this emotion by itself.
    "Other": EmotionWording("an emotion other than the basic ones", ("other than the basic", "another emotion")),
}


# Stems by which a compound name refers to its parts: "Happily Surprised", "Sadly Fearful".
_STEMS = {
    **{"happ": "Happiness", "sad": "Sadness", "fear": "Fear", "ang": "Anger"},
    **{"surpris": "Surprise", "disgust": "Disgust", "contempt": "Contempt"},
}


def emotion_wording(name: str) -> EmotionWording:
    """Also of emotions outside the table: their name as it is; a compound one has the AUs of its parts."""
    if name in EMOTION_WORDING:
        return EMOTION_WORDING[name]
    words = name.lower().split()
    parts = [part for word in words for stem, part in _STEMS.items() if word.startswith(stem)]
    typical = dict.fromkeys(au for part in parts for au in EMOTION_WORDING[part].typical)
    low = " ".join(words)
    phrase = low if len(words) == 1 else f"{'an' if low[0] in 'aeiou' else 'a'} {low} expression"
    return EmotionWording(phrase, (), tuple(typical))


def emotion_prompts(emotions: Sequence[str]) -> dict[str, str]:
    """Emotion -> its sentence in zero-shot classification."""
    return {name: EMOTION_SENTENCE.format(emotion=emotion_wording(name).phrase) for name in emotions}


def au_state_prompts(action_units: Sequence[str]) -> dict[str, tuple[str, str]]:
    """AU -> the sentences of its active and of its resting state, as in the canonical captions."""
    wordings = {au: AU_WORDING[au] for au in check_action_units(list(action_units))}
    return {au: (f"{capitalise(w.active[0])}.", f"{capitalise(w.rest[0])}.") for au, w in wordings.items()}


def capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


# processing_mf2/processing_mf2.py


SHORTEST_SENTENCE = 3
"""Tokens: [CLS], one word, [SEP]."""


_NESTED = ("common_kwargs", "text_kwargs", "images_kwargs")


def split_call(given: Mapping[str, Any], usual: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`padding`, `truncation`, `max_length` and `return_tensors`, settings of the image processor).

    given: as `processor(..., padding=..., text_kwargs={...}, images_kwargs={...}, common_kwargs={...}, **flat)`.
    usual: the tokenizer's own settings, of which `padding` and `max_length` are the defaults.
    """
    nested = {name: given.get(name) or {} for name in _NESTED}
    for name, values in nested.items():
        if not isinstance(values, Mapping):
            raise TypeError(f"{name}: got {type(values).__name__}, expected a dict of settings")
    flat = {name: value for name, value in given.items() if name not in _NESTED}
    for owner in ("text_kwargs", "images_kwargs"):
        twice = sorted((flat.keys() & nested[owner].keys()) - {"return_tensors"})
        if twice:
            raise ValueError(f"{', '.join(twice)}: got it as a keyword and in {owner}, expected one of both")
    text = {"padding": True, "truncation": True, "max_length": None, "return_tensors": "pt"}
    text |= {name: usual[name] for name in ("padding", "max_length") if usual.get(name) is not None}
    both = {**nested["common_kwargs"], **flat}
    text |= {name: both[name] for name in text if both.get(name) is not None}
    unknown = sorted(nested["text_kwargs"].keys() - text.keys())
    if unknown:
        raise TypeError(f"text_kwargs: got {unknown}, expected names among {list(text)}")
    text |= {name: value for name, value in nested["text_kwargs"].items() if value is not None}
    images = {name: value for name, value in both.items() if name not in text} | dict(nested["images_kwargs"])
    images.pop("return_tensors", None)
    for name, allowed in {
        "padding": (True, "longest", "max_length"),
        "truncation": (True, "longest_first"),
        "return_tensors": ("pt", "np", TensorType.PYTORCH, TensorType.NUMPY),
    }.items():
        if text[name] not in allowed:
            raise ValueError(f"{name}: got {text[name]!r}, expected one of {list(allowed[:3])}: a batch is one tensor")
    longest = text["max_length"]
    if longest is not None and (type(longest) is not int or longest < SHORTEST_SENTENCE):
        raise ValueError(f"max_length: got {longest!r}, expected a whole number of tokens from {SHORTEST_SENTENCE}")
    return text, images


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    missing = [name for name in ("pad", "cls", "sep", "bos") if getattr(tokenizer, f"{name}_token_id", None) is None]
    if missing:
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__} has no {', '.join(f'{name}_token' for name in missing)}, expected "
            "a BERT-type tokenizer with [DEC] as bos_token; use build_tokenizer() or load_bert_tokenizer(name_or_path)"
        )
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what transformers makes without a tokenizer.json
        raise ValueError(
            "tokenizer: got a vocabulary without a word; is there a tokenizer.json beside the other files?"
        )
    most = tokenizer.model_max_length
    if isinstance(most, bool) or not isinstance(most, int | float) or not most > 0:
        raise ValueError(f"tokenizer: got model_max_length {most!r:.80}, expected a number of tokens above 0")


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int, name: str) -> list[list[int]]:
    """`[CLS] ... [SEP]` of each text, cut to `limit` tokens; an empty list for a text without a single known word, from
    which a model would learn to write [UNK]."""
    written = [text for text in texts if text.strip()]
    if not written:
        return [[] for _ in texts]
    encoded = iter(tokenizer(written, add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"])
    rows = [next(encoded) if text.strip() else [] for text in texts]
    special = set(tokenizer.all_special_ids)
    unknown = [index for index, row in enumerate(rows) if row and special.issuperset(row)]
    if unknown:  # named without the text, or a foreign corpus would be warned about row by row
        logger.warning_once(
            f"{name}: the tokenizer knows no word of the text at index {unknown[0]}; such texts are taken as empty. "
            "Translate them, or take a tokenizer of their language: load_bert_tokenizer(name_or_path)."
        )
        rows = [[] if index in unknown else row for index, row in enumerate(rows)]
    if any(len(row) > limit for row in rows):
        logger.warning_once(f"{name}: a text is longer than {limit} tokens; such texts are cut off at the end.")
    return [_cut(row, limit) for row in rows]


def encode_sentences(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], budget: int, name: str
) -> list[list[int]]:
    """The sentences of one image, `budget` tokens together: the longest are cut to the largest common length that
    fits."""
    rows = encode_texts(tokenizer, sentences, budget, name)
    cap = max((len(row) for row in rows), default=0)
    if sum(map(len, rows)) > budget:
        logger.warning_once(f"{name}: the sentences of an image have more than {budget} tokens; the longest are cut.")
    while sum(min(len(row), cap) for row in rows) > budget:
        cap -= 1
    return [_cut(row, cap) for row in rows]


def _cut(row: list[int], limit: int) -> list[int]:
    return row if len(row) <= limit else [*row[: limit - 1], row[-1]]  # [SEP] stays


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, shortest: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (rows, length of the longest, at least `shortest`)."""
    length = max([shortest, *(len(row) for row in rows)])
    ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = 1
    return ids, mask


def _caption_tokenizer() -> PreTrainedTokenizerBase:
    """Imported by name: the captions it is made of do not travel with a checkpoint, which has its own tokenizer."""
    try:
        return importlib.import_module("processing_mf2.tokenizer").build_tokenizer()
    except ModuleNotFoundError as error:
        raise ValueError("tokenizer: got none, expected one: a checkpoint's code cannot build it; load it") from error


PREPARATION = ("alignment", "do_grayscale", "normalize_per_image")
"""Settings of images that a model's config has too."""


class MF2Processor(CheckedFilesMixin, FaceResults, ProcessorMixin):
    r"""
    action_units, emotions: the label set, MFA's unless given; au_thresholds: one an AU, 0.5 unless given.
    emotion_max_length: tokens of an emotion caption; au_max_length: of all AU sentences of an image together, and of a
        key-AU caption.
    grades: label -> `reliable`, `usable` or `experimental`. conformal: cuts by confidence level.
    """

    hub_auto_classes = ("AutoProcessor",)

    def __init__(
        self,
        image_processor: MF2ImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        action_units: Sequence[str] | None = None,
        emotions: Sequence[str] | None = None,
        au_thresholds: Sequence[float] | None = None,
        emotion_max_length: int = 61,
        au_max_length: int = 169,
        grades: Mapping[str, str] | None = None,
        conformal: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        labels = resolve_label_set("mfa")
        for name, given in {"action_units": action_units, "emotions": emotions}.items():
            if given is not None and not (isinstance(given, list | tuple) and _are_names(given)):
                raise ValueError(f"{name}: got {given!r:.80}, expected a list of different names")
        if chat_template is not None and not isinstance(chat_template, str | dict):
            raise ValueError(f"chat_template: got {type(chat_template).__name__}, expected text")
        self.action_units = list(check_action_units(labels.action_units if action_units is None else action_units))
        self.emotions = list(labels.emotions if emotions is None else emotions)
        if au_thresholds is not None:
            au_thresholds = resolve_thresholds(au_thresholds, self.action_units, name="au_thresholds")
        self.au_thresholds = au_thresholds
        self.grades = check_grades(grades, [*self.action_units, *self.emotions])
        self.conformal = check_conformal(conformal, self.action_units, self.emotions)
        self.emotion_max_length, self.au_max_length = emotion_max_length, au_max_length
        shortest = {"emotion_max_length": 1, "au_max_length": max(1, len(self.action_units))}
        for name, count in shortest.items():
            value, least = getattr(self, name), count * SHORTEST_SENTENCE
            if type(value) is not int or value < least:
                raise ValueError(f"{name}: got {value}, expected at least {least} tokens, a whole number")
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        check_tokenizer(tokenizer)

    @classmethod
    def for_model(
        cls, config: MF2Config, tokenizer: PreTrainedTokenizerBase | None = None, **image_processor_kwargs: Any
    ) -> "MF2Processor":
        """A processor that fits a model, whose config adopts its token ids; with our own tokenizer unless given one."""
        vision = config.vision_config
        settings = {"size": {"height": vision.image_size, "width": vision.image_size}}
        settings |= {"image_mean": list(vision.image_mean), "image_std": list(vision.image_std)}
        settings |= {name: getattr(vision, name) for name in PREPARATION}
        tokenizer = _caption_tokenizer() if tokenizer is None else tokenizer
        processor = cls(
            MF2ImageProcessor(**{**settings, **image_processor_kwargs}),
            tokenizer,
            **{"action_units": config.action_units, "emotions": config.emotions, "au_thresholds": config.au_thresholds},
            **{"emotion_max_length": config.emotion_max_length, "au_max_length": config.au_max_length},
        )
        config.adopt_tokenizer(tokenizer)
        if hasattr(config, "key_au_prompt_length"):  # the compared systems have no such captions
            config.key_au_prompt_length = processor.caption_prompt("key_au").shape[1] - 1
        return processor

    @property
    def model_input_names(self) -> list[str]:
        texts = [f"{prefix}{name}" for prefix in ("", "au_", "key_au_") for name in ("input_ids", "attention_mask")]
        return ["pixel_values", "landmarks", *texts]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | Sequence[str] | None = None,
        *,
        au_sentences: Sequence[Sequence[str]] | Sequence[str] | None = None,
        key_au_captions: str | Sequence[str] | None = None,
        landmarks: Any = None,
        au_labels: Any = None,
        emotion_labels: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Everything is one an image. An empty caption or sentence, or one without a known word, becomes a row of padding
        with attention mask 0, which every loss leaves out. Texts are padded, and cut to their limit.

        text: emotion captions -> `input_ids`, `attention_mask` (batch, length).
        au_sentences: for each image a sentence an AU, "" if unknown -> `au_input_ids`, `au_attention_mask` (batch, AU,
            length).
        key_au_captions -> `key_au_input_ids`, `key_au_attention_mask` (batch, length).
        padding: to the longest, or "max_length"; max_length: of emotion and key-AU captions, if below their limit.
        landmarks, other keywords (or `images_kwargs`): see [`MF2ImageProcessor.preprocess`]. Texts and labels of an
            image that `on_no_face="skip"` leaves out are left out too; with `on_many_faces="all"` they are refused for
            an image of many faces.
        au_labels (batch, AU): 1, 0 or -1; emotion_labels (batch,): index or -1. Passed on as int64.
        """
        of_text, images_kwargs = split_call(kwargs, self.tokenizer.init_kwargs)
        companions = {
            "au_labels": _int_tensor(au_labels, (len(self.action_units),), ["at rest", "active"], "au_labels"),
            "emotion_labels": _int_tensor(emotion_labels, (), self.emotions, "emotion_labels"),
            "text": _strings(text, "text"),
            "key_au_captions": _strings(key_au_captions, "key_au_captions"),
            "au_sentences": self._sentences(au_sentences),
        }
        companions = {name: values for name, values in companions.items() if values is not None}
        data: dict[str, Any] = {}
        if images is not None:
            count = len(flatten_images(images))
        elif landmarks is not None or images_kwargs:
            raise ValueError(f"images: got none, but {['landmarks', *images_kwargs]} are about images")
        elif not companions:
            raise ValueError("got neither images nor text, expected at least one of them")
        else:
            count = len(next(iter(companions.values())))
        for name, values in companions.items():
            if len(values) != count:
                raise ValueError(f"{name}: got {len(values)}, expected {count}, one for each image")
        if images is not None:
            wanted = images_kwargs.pop("return_landmark_source", self.image_processor.return_landmark_source)
            settings = {**images_kwargs, "return_landmark_source": True, "return_tensors": "pt"}
            data.update(self.image_processor(images, landmarks, **settings))
            companions = _follow(data["image_index"].tolist(), companions, count)
            if not wanted:
                del data["image_index"], data["landmark_source"]
        data.update(self._encode(companions, of_text["max_length"], of_text["padding"] == "max_length"))
        if of_text["return_tensors"] in ("np", TensorType.NUMPY):
            data = {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in data.items()}
        return BatchFeature(data)

    def _encode(self, companions: dict[str, Any], max_length: int | None, fill: bool) -> dict[str, torch.Tensor]:
        pad_id, data = self.tokenizer.pad_token_id, {}
        limits = {"text": ("", self.emotion_max_length), "key_au_captions": ("key_au_", self.au_max_length)}
        for name, (prefix, limit) in limits.items():
            if name in companions:
                rows = encode_texts(self.tokenizer, companions[name], min(limit, max_length or limit), name)
                shortest = (max_length or limit) if fill else 1
                data[f"{prefix}input_ids"], data[f"{prefix}attention_mask"] = pad_rows(rows, pad_id, shortest)
        if "au_sentences" in companions:
            images = companions["au_sentences"]
            rows = [encode_sentences(self.tokenizer, image, self.au_max_length, "au_sentences") for image in images]
            ids, mask = pad_rows([row for image in rows for row in image], pad_id)
            shape = (len(images), len(self.action_units), -1) if images else (0, len(self.action_units), 1)
            data["au_input_ids"], data["au_attention_mask"] = ids.view(shape), mask.view(shape)
        return data | {name: companions[name] for name in ("au_labels", "emotion_labels") if name in companions}

    def _sentences(self, au_sentences: Any) -> list[list[str]] | None:
        if au_sentences is None:
            return None
        if au_sentences and all(isinstance(sentence, str) for sentence in au_sentences):
            au_sentences = [au_sentences]  # of one image
        images = [_strings(image, f"au_sentences[{index}]") for index, image in enumerate(au_sentences)]
        for index, image in enumerate(images):
            if image is None or len(image) != len(self.action_units):
                raise ValueError(
                    f"au_sentences[{index}]: got {image and len(image)} sentences, expected {len(self.action_units)}, "
                    f"one for each of {self.action_units} (an empty one where it is unknown)"
                )
        return images

    def caption_prompt(self, kind: Literal["emotion", "au", "key_au"] = "emotion") -> torch.Tensor:
        """(1, length): how a caption of this kind starts, for `MF2ForCaptioning.generate(input_ids=...)`."""
        if kind not in ("emotion", "au", "key_au"):
            raise ValueError(f"kind: got {kind!r}, expected 'emotion', 'au' or 'key_au'")
        words = self.tokenizer(KEY_AU_PROMPT, add_special_tokens=False)["input_ids"] if kind == "key_au" else []
        return torch.tensor([[self.tokenizer.bos_token_id, *words]])

    def decode_captions(self, token_ids: torch.Tensor) -> list[Any]:
        """Generated token ids (batch, ..., length) to texts, nested like them."""
        if token_ids.ndim > 2:
            return [self.decode_captions(row) for row in token_ids]
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]


def _are_names(given: Sequence[Any]) -> bool:
    return all(isinstance(name, str) and name for name in given) and len(set(given)) == len(given)


def _strings(texts: Any, name: str) -> list[str] | None:
    """One or many texts as a list; `None` among them is an empty one."""
    if texts is None:
        return None
    texts = [texts] if isinstance(texts, str) else ["" if text is None else text for text in texts]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise TypeError(f"{name}: got {type(wrong[0]).__name__}, expected a string, or a list of them")
    return texts


def _int_tensor(labels: Any, row_shape: tuple[int, ...], meanings: Sequence[str], name: str) -> torch.Tensor | None:
    if labels is None:
        return None
    highest = len(meanings) - 1
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        listed = ", ".join(["-1 unknown", *(f"{index} {meaning}" for index, meaning in enumerate(meanings))])
        raise ValueError(f"{name}: got {labels!r:.80}, expected whole numbers: {listed}") from error
    if values.ndim == len(row_shape):
        values = values[None]  # of one image
    if values.ndim != len(row_shape) + 1 or tuple(values.shape[1:]) != row_shape:
        expected = ", ".join(["images", *map(str, row_shape)])
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected ({expected})")
    whole = values.to(torch.int64)
    wrong = values[(whole != values) | (whole < UNKNOWN_LABEL) | (whole > highest)]
    if wrong.numel():
        raise ValueError(f"{name}: got {wrong[0].item()}, expected whole numbers from -1 (unknown) to {highest}")
    return whole


def _follow(image_index: list[int], companions: dict[str, Any], count: int) -> dict[str, Any]:
    """Texts and labels of the rows' images: dropped with a skipped image, refused for one of several faces."""
    if not companions or image_index == list(range(count)):
        return companions
    crowded = [index for index in set(image_index) if image_index.count(index) > 1]
    if crowded:
        raise ValueError(
            f"{', '.join(companions)}: image {crowded[0]} shows {image_index.count(crowded[0])} faces, and it is "
            "unknown which of them texts and labels are about; expected on_many_faces='largest'"
        )
    return {
        name: values[image_index] if isinstance(values, torch.Tensor) else [values[index] for index in image_index]
        for name, values in companions.items()
    }


# processing_mf2/pipelines.py


TEMPLATE = EMOTION_SENTENCE.replace("{emotion}", "{}")


_BY_NOUN = {unit.noun: name for name, unit in ACTION_UNITS.items()}


_BY_EMOTION = {name.lower(): name for name in EMOTIONS}


@dataclass(frozen=True)
class ZeroShotLabels:
    """branch "emo": sentences compete for the face. branch "au": each AU's own state against its state at rest."""

    branch: Literal["emo", "au"]
    labels: tuple[str, ...]
    sentences: tuple[str, ...]
    action_units: tuple[str, ...] = ()
    at_rest: tuple[str, ...] = ()


def read_labels(
    labels: Any, action_units: Sequence[str], branch: str | None = None, template: str = TEMPLATE
) -> ZeroShotLabels:
    """labels: emotions or words of the user's own; or AUs by code ("AU12") or noun ("lip corner puller").

    A mapping gives the sentences: one for a label, one or a pair (active, at rest) for an AU.
    """
    if branch is not None:
        _one_of("branch", branch, ("emo", "au"))
    names = list(labels) if isinstance(labels, Mapping | list | tuple) else []
    if not names or not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"candidate_labels: got {labels!r:.120}, expected a list of different labels, such as ['Happiness', "
            "'Anger'] or ['AU6', 'AU12'], or a mapping from labels to sentences"
        )
    units = [_action_unit(name) for name in names]
    own = labels if isinstance(labels, Mapping) else {}
    if branch == "emo" or (branch is None and not any(units)):
        sentences = tuple(_emotion_sentence(name, own.get(name), template) for name in names)
        return ZeroShotLabels("emo", tuple(names), sentences)
    wrong = [name for name, unit in zip(names, units, strict=True) if unit not in action_units]
    if wrong:
        raise ValueError(
            f"candidate_labels: got {wrong}, expected action units of this model: {list(action_units)}, by code or "
            f"noun{_hint(wrong[0].lower(), _BY_NOUN)}; emotions and your own words need a call of their own"
        )
    states = [_unit_sentences(unit, own.get(name)) for name, unit in zip(names, units, strict=True)]
    active, rest = zip(*states, strict=True)
    return ZeroShotLabels("au", tuple(names), active, tuple(units), rest)


def _action_unit(label: str) -> str | None:
    """'AU12', 'au 12', 'AU012' and 'Lip corner puller' are AU12; an AU that FACS does not have is kept as written."""
    words = label.strip().lower()
    digits = words.removeprefix("au").strip()
    return f"AU{int(digits)}" if words.startswith("au") and digits.isdigit() else _BY_NOUN.get(words)


def _unit_sentences(unit: str, own: Any) -> tuple[str, str]:
    own = (own,) if isinstance(own, str) else tuple(own or ())
    if len(own) > 2 or not all(isinstance(sentence, str) and sentence.strip() for sentence in own):
        raise ValueError(f"candidate_labels[{unit!r}]: got {own!r:.80}, expected one sentence, or two: active, at rest")
    return (*own, *au_state_prompts([unit])[unit][len(own) :])


def _emotion_sentence(label: str, own: Any, template: str) -> str:
    if own is not None:
        if not isinstance(own, str) or not own.strip():
            raise ValueError(f"candidate_labels[{label!r}]: got {own!r:.80}, expected a sentence")
        return own
    words = label.strip().lower()
    if words in _BY_EMOTION and template == TEMPLATE:
        return emotion_prompts([_BY_EMOTION[words]])[_BY_EMOTION[words]]
    near = difflib.get_close_matches(words, [*_BY_EMOTION, *_BY_NOUN], n=1, cutoff=0.85)
    if near and near[0] != words:
        raise ValueError(
            f"candidate_labels: got {label!r}, did you mean {_BY_EMOTION.get(near[0], near[0])!r}? If not, give its "
            "sentence: {label: sentence}"
        )
    if template.count("{}") != 1:
        raise ValueError(f"hypothesis_template: got {template!r}, expected a sentence with one {{}} for the label")
    return template.format(label)


def _hint(value: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {list(choices)}{_hint(str(value), choices)}")


# Faults of an item; any other exception is a defect of the program and is never skipped.
_ITEM_ERRORS = (ValueError, TypeError, OSError)


_ONE_IMAGE = (str, bytes, bytearray, Mapping, Image.Image)


class MF2Pipeline(Pipeline):
    """One image, or many: a list, a generator, a dataset. Answers are in the order of the images, one an image.

    An image is whatever the image processor reads, or a mapping with `image` (and `landmarks`, if known).
    on_error (`str`): `"raise"`, or `"skip"`: an image that cannot be read, or has no face where one is required, is
        answered by `{"error": {"index": ..., "type": ..., "message": ...}}`.
    Settings of the image processor, such as `on_no_face` or `landmark_source`, may be given to the pipeline or a call.
    """

    forward_names: ClassVar[tuple[str, ...]] = ()
    postprocess_names: ClassVar[tuple[str, ...]] = ()
    many_faces: ClassVar[str] = "largest"

    def __init__(
        self, model: Any, *args: Any, num_workers: int | None = None, batch_size: int | None = None, **kwargs: Any
    ) -> None:
        if kwargs.get("processor") is None:
            raise ValueError(
                f"processor: got none, expected the model's: {type(self).__name__}(model, processor="
                "MF2Processor.from_pretrained(...)), or MF2Processor.for_model(model.config) if it has none yet"
            )
        adapted = hasattr(model, "get_base_model")  # peft's wrapper: its layers are inside the model
        super().__init__(model.get_base_model() if adapted else model, *args, **kwargs)
        self.num_workers, self.batch_size = num_workers or 0, batch_size or 1
        names = {name for step in self.setting_names() for name in step}
        self.settings = {name: kwargs[name] for name in names & kwargs.keys()}
        self.model.eval()  # dropout would make answers random
        if self.processor.au_thresholds is None:  # the processor owns thresholds; older ones lack those of the config
            self.processor.au_thresholds = self.model.config.au_thresholds

    def setting_names(self) -> tuple[Sequence[str], ...]:
        """Names of the settings that `preprocess`, `forward` and `postprocess` take."""
        own = {"return_landmark_source", "return_faces", *(["on_many_faces"] if self.many_faces == "largest" else [])}
        of_images = sorted(set(MF2ImageProcessorKwargs.__annotations__) - own)
        return ("on_error", *of_images), self.forward_names, self.postprocess_names

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        steps = self.setting_names()
        names = list(dict.fromkeys(name for step in steps for name in step))
        for name in given:
            if name not in names:
                hint = _hint(name, names)
                raise TypeError(f"{type(self).__name__}: got an unknown parameter {name!r}{hint} Parameters: {names}")
        _one_of("on_error", given.get("on_error", "raise"), ("raise", "skip"))
        choices = ("landmark_source", "on_no_face", "on_many_faces")
        check_choices({name: given[name] for name in choices if given.get(name) is not None})
        return tuple({name: given[name] for name in step if name in given} for step in steps)

    def __call__(
        self, inputs: Any = None, num_workers: int | None = None, batch_size: int | None = None, **kwargs: Any
    ) -> Any:
        for name in ("images", "image"):  # as transformers' own pipelines call them
            inputs = kwargs.pop(name, inputs)
        prepare, forward, post = self._sanitize_parameters(**{**self.settings, **kwargs})
        workers = self.num_workers if num_workers is None else num_workers
        size = self.batch_size if batch_size is None else batch_size
        if type(size) is not int or size < 1:
            raise ValueError(f"batch_size: got {size!r}, expected a whole number from 1")
        several = not isinstance(inputs, _ONE_IMAGE) and isinstance(inputs, Iterable | Dataset)
        if isinstance(inputs, np.ndarray | torch.Tensor):
            several = inputs.ndim == 4
        if not several:
            items = _Items(self, prepare, [inputs], numbered=False)
            return next(self._answers([[items[0]]], 1, forward, post, items))
        if hasattr(inputs, "__len__") and len(inputs) == 0:
            raise ValueError("inputs: got an empty list, expected at least one image")
        items = _Items(self, prepare, inputs)
        indexable = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
        if indexable and (workers or not isinstance(inputs, Iterable)):
            batches = DataLoader(items, size, num_workers=workers, collate_fn=list)
        else:
            ready = (items.ready(index, value) for index, value in enumerate(inputs))
            batches = iter(lambda: list(islice(ready, size)), [])
        answers = self._answers(batches, size, forward, post, items)
        return list(answers) if isinstance(inputs, list | tuple | np.ndarray | torch.Tensor) else answers

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model and processor with their code, that of the pipelines included."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def preprocess(self, item: Any, on_error: str = "raise", **settings: Any) -> dict[str, Any]:
        """A row for every face to judge; none if `on_no_face="skip"` leaves the image out. An item that was prepared
        before, say in another thread, is taken as it is."""
        if isinstance(item, Mapping) and "pixel_values" in item:
            return dict(item)
        landmarks = None
        if isinstance(item, Mapping) and "image" in item:
            item, landmarks = item["image"], item.get("landmarks")
        settings = {"on_many_faces": self.many_faces, **settings, "return_faces": True}
        return dict(self.processor.image_processor(item, landmarks, return_tensors="pt", **settings))

    def _answers(
        self, batches: Iterable[list[dict]], batch_size: int, forward_params: dict, post_params: dict, items: "_Items"
    ) -> Iterator[Any]:
        with torch.no_grad():
            forward_params = {**forward_params, **self.once_a_call(forward_params)}
        index = -1
        for batch in batches:
            rows = self._rows([item for item in batch if "error" not in item], batch_size, forward_params)
            for item in batch:
                index += 1
                if "error" in item:
                    yield item
                    continue
                faces = [{"face": face, **next(rows)} for face in item["faces"]]
                try:
                    for name, values in (pair for face in faces for pair in face.items()):
                        if isinstance(values, torch.Tensor):
                            check_finite(values, name)
                    answer = self.postprocess(faces, **post_params) if faces else []
                except ValueError as error:
                    answer = items.failed(index, error)
                yield answer

    def _rows(self, items: list[dict], batch_size: int, forward_params: dict) -> Iterator[dict[str, Any]]:
        """The model's output for each face, `batch_size` faces at once, however many an image has."""
        if not any(item["faces"] for item in items):
            return
        pixels, landmarks = (torch.cat([item[name] for item in items]) for name in ("pixel_values", "landmarks"))
        for start in range(0, len(pixels), batch_size):
            part = slice(start, start + batch_size)
            # Landmarks stay float32: half precision would move them by up to a pixel.
            inputs = {"pixel_values": pixels[part].to(self.dtype), "landmarks": landmarks[part]}
            outputs = self.forward(inputs, **forward_params)
            for row in range(len(pixels[part])):
                yield {name: values[row] for name, values in outputs.items()}

    def once_a_call(self, forward_params: dict) -> dict[str, Any]:
        """More arguments of `_forward`, the same for all batches."""
        return {}


class _Items(Dataset):
    """Turns inputs into tensors, or into a named error."""

    def __init__(self, pipeline: MF2Pipeline, params: dict[str, Any], inputs: Any, numbered: bool = True) -> None:
        self.pipeline, self.params, self.inputs, self.numbered = pipeline, params, inputs, numbered

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.ready(index, self.inputs[index])

    def ready(self, index: int, value: Any) -> dict[str, Any]:
        try:
            return self.pipeline.preprocess(value, **self.params)
        except _ITEM_ERRORS as error:
            return self.failed(index, error)

    def failed(self, index: int, error: Exception) -> dict[str, Any]:
        message = f"inputs{f'[{index}]' if self.numbered else ''}: {str(error).removeprefix('images: ')}"
        if self.params.get("on_error") == "skip":
            return {"error": {"index": index, "type": type(error).__name__, "message": message}}
        kind = type(error) if type(error) in (*_ITEM_ERRORS, FileNotFoundError) else ValueError
        raise kind(message) from error


CAPTIONS: dict[str, str] = {"emotion": "emo", "key_au": "emo", "au": "au"}
"""Kind of caption -> the branch that writes it."""


class MF2ImageClassificationPipeline(MF2Pipeline):
    """Labels and scores of an image's largest face, best first; an empty list if `on_no_face="skip"`.

    target (`str`): `"emotion"` or `"action_units"`; the config's `classification_target` unless given.
    top_k (`int`): number of labels; 5 emotions or all AUs unless given.
    function_to_apply (`str`): `"softmax"` (default for emotions), `"sigmoid"` (for AUs) or `"none"`.
    thresholds: of AUs, which then also have `active`: one for all, one each, or by name; the checkpoint's unless given.
    """

    forward_names = ("target",)
    postprocess_names = ("target", "top_k", "function_to_apply", "thresholds")

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        choices = {"target": ("emotion", "action_units"), "function_to_apply": ("softmax", "sigmoid", "none")}
        for name in choices.keys() & given.keys():
            if given[name] is not None:
                _one_of(name, given[name], choices[name])
        top_k = given.get("top_k")
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise ValueError(f"top_k: got {top_k!r}, expected a whole number from 1")
        return super()._sanitize_parameters(**given)

    def _forward(self, inputs: dict[str, torch.Tensor], target: str | None = None) -> dict[str, torch.Tensor]:
        usual = self.model.config.classification_target
        target, outputs = target or usual, self.model(**inputs)
        logits = getattr(outputs, "emotion_logits" if target == "emotion" else "au_logits", None)
        if logits is None and target == usual:
            logits = getattr(outputs, "logits", None)
        if logits is None:
            raise ValueError(
                f"target: got {target!r}, but {type(self.model).__name__} answers only with {usual!r} here; load the "
                "checkpoint with AutoModelForPreTraining, which answers with all its labels"
            )
        return {"logits": logits}

    def postprocess(
        self,
        rows: list[dict[str, Any]],
        target: str | None = None,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        thresholds: Any = None,
    ) -> list[dict[str, Any]]:
        config = self.model.config
        of_units = (target or config.classification_target) == "action_units"
        apply = function_to_apply or ("sigmoid" if of_units else "softmax")
        logits = rows[0]["logits"].float()
        scores = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid(), "none": logits}[apply].tolist()
        names = config.action_units if of_units else config.emotions
        answers = [{"label": name, "score": score} for name, score in zip(names, scores, strict=True)]
        if of_units:
            for answer, limit in zip(answers, self.processor.thresholds(thresholds), strict=True):
                answer["name"] = ACTION_UNITS[answer["label"]].noun
                if apply == "sigmoid":  # a threshold is a probability
                    answer |= {"threshold": limit, "active": answer["score"] >= limit}
        answers.sort(key=lambda answer: -answer["score"])
        return answers[: top_k or (None if of_units else 5)]


class MF2ZeroShotImageClassificationPipeline(MF2Pipeline):
    """How near each label's sentence is to an image's largest face, nearest first.

    candidate_labels: see [`read_labels`]. Emotions and your own words share a score of 1; an AU's score is its active
        state's against its state at rest, whatever the other labels.
    branch (`str`): `"emo"` or `"au"`; inferred from the labels unless given.
    hypothesis_template (`str`): the sentence around a label that is not the name of an emotion.
    """

    forward_names = ("candidate_labels", "branch", "hypothesis_template")

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        prepare, forward, post = super()._sanitize_parameters(**given)
        if not forward:
            return prepare, forward, post
        if "candidate_labels" not in forward:
            raise ValueError(f"candidate_labels: got none, expected them together with {sorted(forward)}")
        template, branch = forward.get("hypothesis_template", TEMPLATE), forward.get("branch")
        labels = read_labels(forward["candidate_labels"], self.model.config.action_units, branch, template)
        unknown = self.processor.tokenizer.unk_token_id
        for sentence in (*labels.sentences, *labels.at_rest):
            ids = self.processor.tokenizer(sentence, add_special_tokens=False)["input_ids"]
            if not ids or unknown in ids:
                raise ValueError(
                    f"candidate_labels: the tokenizer does not know every word of {sentence!r}; write it in the "
                    "language that the model was trained with"
                )
        return prepare, {"labels": labels}, post

    def once_a_call(self, forward_params: dict) -> dict[str, Any]:
        if "labels" not in forward_params:
            raise ValueError("candidate_labels: got none, expected the labels to choose from: ['Happiness', 'Anger']")
        labels = forward_params["labels"]
        text = self.processor(text=[*labels.sentences, *labels.at_rest]).to(self.device)
        model = self.model.base_model
        read = model.get_text_features(text["input_ids"], text["attention_mask"], labels.branch, return_dict=True)
        return {"features": read.pooler_output}

    def _forward(
        self, inputs: dict[str, torch.Tensor], labels: ZeroShotLabels, features: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        model = self.model.base_model
        seen = model.get_image_features(**inputs, branch=labels.branch, return_dict=True).pooler_output
        temperature = model.branch(labels.branch).temperature.clamp_min(1e-3)
        if labels.branch == "emo":
            near = torch.einsum("bqd,ld->blq", seen, features)
        else:  # each sentence meets the queries of its own AU
            places = [model.config.action_units.index(unit) for unit in labels.action_units] * 2
            near = torch.einsum("blqd,ld->blq", seen[:, places], features)
        logits = (near.amax(dim=-1) / temperature).float()
        scores = logits.softmax(-1) if labels.branch == "emo" else logits.unflatten(1, (2, -1)).softmax(1)[:, 0]
        return {"scores": scores, "labels": [labels] * len(scores)}

    def postprocess(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        labels: ZeroShotLabels = rows[0]["labels"]
        scored = zip(rows[0]["scores"].tolist(), labels.labels, labels.sentences, strict=True)
        answers = [{"score": score, "label": label, "sentence": sentence} for score, label, sentence in scored]
        for answer, unit, rest in zip(answers, labels.action_units, labels.at_rest, strict=False):
            answer |= {"action_unit": unit, "name": ACTION_UNITS[unit].noun, "sentence_at_rest": rest}
        return sorted(answers, key=lambda answer: -answer["score"])


class _Writing(MF2Pipeline):
    """Pipelines that may write captions, with any model class of the checkpoint."""

    forward_names = ("captions", "max_new_tokens", "generate_kwargs")
    _writer: Any = None

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        prepare, forward, post = super()._sanitize_parameters(**given)
        if (wanted := forward.get("captions")) is not None:
            config = self.model.config
            here = [kind for kind, branch in CAPTIONS.items() if getattr(config, f"use_{branch}_branch")]
            wanted = [wanted] if isinstance(wanted, str) else wanted
            forward["captions"] = list({True: here, False: []}[wanted] if isinstance(wanted, bool) else wanted)
            for kind in forward["captions"]:
                _one_of("captions", kind, here)
        return prepare, forward, post

    def write(
        self,
        seen: dict[str, torch.Tensor],
        kinds: Sequence[str],
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """A dict a face: kind -> text, or for "au" AU -> text."""
        settings = {**(generate_kwargs or {}), **({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens})}
        self._writer = self._writer or self.model.captioner()
        units = self.model.config.action_units
        written: list[dict[str, Any]] = [{} for _ in seen["landmarks"]]
        for kind in kinds:
            more = {"input_ids": self.processor.caption_prompt(kind).to(self.device)} if kind == "key_au" else {}
            ids = self._writer.generate(**seen, branch=CAPTIONS[kind], **{**settings, **more})
            for face, text in zip(written, self.processor.decode_captions(ids), strict=True):
                face[kind] = dict(zip(units, text, strict=True)) if kind == "au" else text
        return written

    def look(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs the tower once for everything that reads it, unless an adapter reads the tower's own states."""
        model = self.model.base_model
        if any(model.branch(name).port.reads("vision") for name in model.branch_names):
            return inputs
        return {"image_tokens": model.look(inputs["pixel_values"], None), "landmarks": inputs["landmarks"]}


class MF2ImageToTextPipeline(_Writing):
    """Captions of an image's largest face, a dict each with `generated_text` and `kind`.

    captions: `"emotion"` (default), `"key_au"`, `"au"` (a text an AU), several of them, or True for all.
    max_new_tokens, generate_kwargs: for `generate`.
    """

    def _forward(
        self, inputs: dict[str, torch.Tensor], captions: Sequence[str] | None = None, **settings: Any
    ) -> dict[str, Any]:
        usual = ["emotion"] if self.model.config.use_emo_branch else ["au"]
        return {"captions": self.write(self.look(inputs), usual if captions is None else captions, **settings)}

    def postprocess(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers = []
        for kind, text in rows[0]["captions"].items():
            for unit, words in (text if kind == "au" else {None: text}).items():
                of_unit = {"action_unit": unit, "name": ACTION_UNITS[unit].noun} if unit else {}
                answers.append({"generated_text": words, "kind": kind, **of_unit})
        return answers


class MF2FaceAnalysisPipeline(_Writing):
    """Every face of an image, a dict each: box, landmarks and their source, emotion, all AUs, captions if asked for.

    captions: None (default), or as in [`MF2ImageToTextPipeline`]; max_new_tokens, generate_kwargs: for them.
    thresholds: of AUs: one for all, one each, or by name; the checkpoint's unless given.
    confidence: such as 0.9, for each AU's `state` (active, at rest, cannot tell) and `emotion_set`.
    on_many_faces (`str`): `"all"` (default) or `"largest"`. Faces are detected if `landmark_source="face_alignment"`;
        otherwise an image is one face.
    """

    postprocess_names = ("thresholds", "confidence")
    many_faces = "all"

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        conformal_cuts(given.get("confidence"), self.processor.conformal)  # an error before the first image
        return super()._sanitize_parameters(**given)

    def _forward(
        self, inputs: dict[str, torch.Tensor], captions: Sequence[str] | None = None, **settings: Any
    ) -> dict[str, Any]:
        seen = self.look(inputs) if captions else inputs
        outputs = self.model(**seen)
        logits = {name: getattr(outputs, name, None) for name in ANSWERS}
        logits = {name: values for name, values in logits.items() if values is not None}
        if not logits:
            raise ValueError(
                f"model: got {type(self.model).__name__}, expected one that answers with emotions and action units: "
                "MF2ForFaceAnalysis or MF2ForPreTraining"
            )
        return {**logits, "captions": self.write(seen, captions, **settings)} if captions else logits

    def postprocess(
        self, rows: list[dict[str, Any]], thresholds: Any = None, confidence: float | None = None
    ) -> list[dict[str, Any]]:
        names = [name for name in ANSWERS if name in rows[0]]
        outputs = {name: torch.stack([row[name] for row in rows]) for name in names}
        results = self.processor.post_process_face_analysis(outputs, thresholds, confidence=confidence)
        captions = [{"captions": row["captions"]} if "captions" in row else {} for row in rows]
        return [{**row["face"], **said, **text} for row, said, text in zip(rows, results, captions, strict=True)]


# A task that transformers does not have; for the others a checkpoint's config names the classes.
if "face-analysis" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline("face-analysis", MF2FaceAnalysisPipeline, AutoModelForPreTraining, type="image")
