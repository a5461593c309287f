"""Geometry of a crop: the matrix that aligns a face to the canonical one, and resampling by a matrix.

Pixel coordinates are continuous, x right and y down: an image spans 0 to its width, the first pixel's centre is at 0.5
and a flip maps x to width - x.
"""

import functools
import math
import sys
import threading
from itertools import pairwise

import numpy as np
from PIL import Image

from configuration_mf2.facs import CANONICAL_FACE

from .image_io import BACKGROUND


try:
    import cv2
except ImportError:  # PIL does the same, more slowly
    cv2 = None


STEADY_POINTS: tuple[int, ...] = (0, 1, 2, 14, 15, 16, *range(27, 48))
"""Sides of the face, nose and eyes. Brows, mouth and jaw move with action units: fitting them too would remove part of
the movement that is to be recognised."""

_CV2_SIDE = 32767
_MOST_SAMPLES = 2**22  # resampled at once; larger crops are made in bands
_STRIP = 2**20  # pixels that are converted at once
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


def warp_bytes(image: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray | None:
    """`warp` of a uint8 image to uint8 (height, width, channels), rounded; `None` where only `warp` can."""
    source, bands, samples = _plan(image, matrix, height, width)
    whole = source.dtype == np.uint8 and len(bands) == 1
    if not whole or not _cv2_can(source, height * samples[0], width * samples[1]):
        return None
    region, matrix = _around_crop(source, matrix, height, width)
    return _resample(np.ascontiguousarray(region.transpose(1, 2, 0)), matrix, (height, width), samples)


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
