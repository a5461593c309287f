"""Geometry of a crop: the matrix that brings a face to the canonical one, and the resampling that follows a matrix.

Pixel coordinates are continuous, x to the right and y down: the image spans 0 to its width, so the first pixel's middle
is at 0.5 and a flip takes x to width - x.
"""

import functools
import math
import threading

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from configuration_mf2.facs_mf2 import CANONICAL_FACE

from .image_reading_mf2 import BACKGROUND


try:
    import cv2
except ImportError:  # torch does the same, at a fifth of the speed
    cv2 = None


STEADY_POINTS: tuple[int, ...] = (0, 1, 2, 14, 15, 16, *range(27, 48))
"""The sides of the face, the nose and the eyes. Brows, mouth and jaw move with the action units: fitted to them too,
the alignment would take a part of what is to be recognised out of the crop and move the rest of the face instead."""


def canonical_landmarks(height: int, width: int) -> np.ndarray:
    """Where the 68 landmarks of the mean face lie in a crop of this size: (68, 2)."""
    return np.array(CANONICAL_FACE) * (width, height)


def fit_similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift that bring (n, 2) points nearest to the target, as a 3x3 matrix.

    Umeyama's least squares; with points as complex numbers it is a linear regression, and a reflection cannot occur.
    """
    source, aim = points @ (1, 1j), target @ (1, 1j)
    centred = source - source.mean()
    turn = np.vdot(centred, aim - aim.mean()) / np.vdot(centred, centred).real
    shift = aim.mean() - turn * source.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag], [0, 0, 1]])


def alignment_matrix(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    steady = list(STEADY_POINTS)
    return fit_similarity(landmarks[steady], canonical_landmarks(height, width)[steady])


def resize_matrix(old_height: int, old_width: int, height: int, width: int) -> np.ndarray:
    return np.diag([width / old_width, height / old_height, 1.0])


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def warp(image: torch.Tensor, matrix: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Resamples (channels, h, w) from 0 to 255 into a float32 crop; `matrix` takes the image's pixels to the crop's.

    Bilinear; where the image shrinks, several samples a crop pixel are averaged, as many as a pixel has image pixels
    under it (the area's mean, so nothing aliases), in one resampling. Beyond the image's border there is mid grey.
    """
    inverse = np.linalg.inv(matrix)
    pool, many_y, many_x = _sampling(inverse)
    bands = min(height, math.ceil(height * many_y * width * many_x / _MOST_SAMPLES))
    if bands > 1:
        edges = [height * band // bands for band in range(bands + 1)]
        up = [np.array([[1, 0, 0], [0, 1, -top], [0, 0, 1.0]]) for top in edges]
        parts = [warp(image, up[band] @ matrix, edges[band + 1] - edges[band], width) for band in range(bands)]
        return torch.cat(parts, dim=1)
    image_height, image_width = image.shape[1:]
    if _cv2_can(image, pool, many_y * height, many_x * width):
        image, matrix, inverse = _around_crop(image, matrix, inverse, height, width)
        source = _scratch("source", np.dtype(np.float32), *image.shape[1:], image.shape[0])
        torch.from_numpy(source).copy_(image.permute(1, 2, 0))
        samples = _resample(source, matrix, inverse, (height, width), many_y, many_x)
        return torch.from_numpy(samples).permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
    corners = transform_points(inverse, np.array([[0, 0], [width, 0], [0, height], [width, height]]))
    left, top = np.floor(corners.min(0)).astype(int) - 2 * pool
    right, bottom = np.ceil(corners.max(0)).astype(int) + 2 * pool
    reaches_out = min(left, top) < 0 or right > image_width or bottom > image_height
    left, right = np.clip([left, right], 0, image_width)
    top, bottom = np.clip([top, bottom], 0, image_height)
    if left >= right or top >= bottom:
        return torch.full((image.shape[0], height, width), BACKGROUND, device=image.device)
    region = pooled(image[:, top:bottom, left:right], pool)[None]

    # Crop pixels -> image pixels -> the region's normalised coordinates (-1 to 1 from edge to edge).
    span_x, span_y = region.shape[3] * pool, region.shape[2] * pool
    to_region = np.array([[2 / span_x, 0, -2 * left / span_x - 1], [0, 2 / span_y, -2 * top / span_y - 1], [0, 0, 1]])
    from_crop = np.array([[width / 2, 0, width / 2], [0, height / 2, height / 2], [0, 0, 1]])
    theta = torch.tensor((to_region @ inverse @ from_crop)[None, :2], dtype=torch.float32, device=image.device)
    grid = F.affine_grid(theta, (1, 1, height * many_y, width * many_x), align_corners=False)
    samples = F.grid_sample(region, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if reaches_out:
        x, y = grid[..., 0], grid[..., 1]
        last_x, last_y = 2 * (right - left) / span_x - 1, 2 * (bottom - top) / span_y - 1
        inside = (x >= -1) & (x <= last_x) & (y >= -1) & (y <= last_y)
        samples = torch.where(inside[:, None], samples, BACKGROUND)
    if many_x * many_y > 1:
        samples = F.avg_pool2d(samples, (many_y, many_x))
    return samples[0]


def warp_bytes(image: torch.Tensor, matrix: np.ndarray, height: int, width: int) -> np.ndarray | None:
    """`warp` of a uint8 image to uint8 (height, width, channels), each sample rounded once or, where it shrinks, twice;
    `None` where only `warp` can."""
    inverse = np.linalg.inv(matrix)
    pool, many_y, many_x = _sampling(inverse)
    if image.dtype != torch.uint8 or not _cv2_can(image, pool, many_y * height, many_x * width):
        return None
    image, matrix, inverse = _around_crop(image, matrix, inverse, height, width)
    source = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return _resample(source, matrix, inverse, (height, width), many_y, many_x)


def warp_by_pil(image: torch.Tensor, matrix: np.ndarray, height: int, width: int) -> torch.Tensor:
    """What `warp` does, by PIL; equal to a few thousandths of a brightness step, but where an image ends."""
    inverse = np.linalg.inv(matrix)
    pool, many_y, many_x = _sampling(inverse)
    bands = min(height, math.ceil(height * many_y * width * many_x / _MOST_SAMPLES))
    image = image.detach().cpu()
    source = pooled(image, pool)
    # Samples -> crop -> image -> its means of pool x pool pixels.
    to_source = np.diag([1 / pool, 1 / pool, 1]) @ inverse @ np.diag([1 / many_x, 1 / many_y, 1])
    crop = torch.empty(image.shape[0], height, width)
    for band in range(bands):
        top, bottom = height * band // bands, height * (band + 1) // bands
        down = np.array([[1, 0, 0], [0, 1, top * many_y], [0, 0, 1.0]])
        size, data = (width * many_x, (bottom - top) * many_y), (to_source @ down)[:2].ravel().tolist()
        for channel, colour in zip(source, crop, strict=True):
            layer = Image.fromarray(channel.numpy())
            layer = layer.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=BACKGROUND)
            samples = torch.from_numpy(np.array(layer))
            colour[top:bottom] = samples.reshape(bottom - top, many_y, width, many_x).mean(dim=(1, 3))
    return crop


def pooled(image: torch.Tensor, factor: int) -> torch.Tensor:
    """Means of squares of factor x factor pixels, as float32; in strips, to need no copy of the whole image."""
    if factor == 1:
        return image.float()
    rows = factor * max(1, _STRIP // (factor * image.shape[2]))
    means = torch.empty(image.shape[0], -(-image.shape[1] // factor), -(-image.shape[2] // factor), device=image.device)
    strip = torch.empty_like(
        image[:, :rows], dtype=torch.float32
    )  # used again and again: freed memory of this size is not found again
    for top in range(0, image.shape[1], rows):
        part = image[:, top : top + rows]
        of_part = strip[:, : part.shape[1]].copy_(part)
        means[:, top // factor : top // factor + rows // factor] = F.avg_pool2d(
            of_part[None], factor, ceil_mode=True, count_include_pad=False
        )[0]
    return means


_CV2_SIDE = 32767
_MOST_SAMPLES = 2**22  # that are averaged to a crop at once; of more, the crop is made in bands
_STRIP = 2**20  # pixels that are converted at once
_SCRATCH = threading.local()


def _sampling(inverse: np.ndarray) -> tuple[int, int, int]:
    """By how much the image is averaged first, and then how many samples a crop pixel is averaged of, down and across.

    A very large shrink is done in two averages, so that the work is bounded by the image's size.
    """
    (a, b, _), (c, d, _), _ = inverse.tolist()
    step_x, step_y = math.hypot(a, c), math.hypot(b, d)  # image pixels per crop pixel, along the crop's two axes
    pool = max(1, int(min(step_x, step_y) / 2))
    return pool, max(1, math.ceil(step_y / pool - 1e-6)), max(1, math.ceil(step_x / pool - 1e-6))


def _cv2_can(image: torch.Tensor, pool: int, rows: int, columns: int) -> bool:
    if cv2 is None or pool > 1 or image.device.type != "cpu" or image.requires_grad:
        return False
    return image.shape[0] in (1, 3) and max(*image.shape[1:], rows, columns) < _CV2_SIDE


def _reaches_out(inverse: np.ndarray, crop: tuple[int, int], image: tuple[int, int]) -> bool:
    (a, b, x), (c, d, y), _ = inverse.tolist()
    (height, width), (image_height, image_width) = crop, image
    xs = (x, x + a * width, x + b * height, x + a * width + b * height)
    ys = (y, y + c * width, y + d * height, y + c * width + d * height)
    return min(*xs, *ys) < 0 or max(xs) > image_width or max(ys) > image_height


def _around_crop(
    image: torch.Tensor, matrix: np.ndarray, inverse: np.ndarray, height: int, width: int
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """The part of the image that a crop reads, with the matrices from and to it: a photograph of many faces is not
    copied whole for each of them."""
    corners = transform_points(inverse, np.array([[0, 0], [width, 0], [0, height], [width, height]]))
    sides = image.shape[2], image.shape[1]
    left, top = np.clip(np.floor(corners.min(0)) - 2, 0, sides).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(0)) + 2, 0, sides).astype(int).tolist()
    if not 0 < (right - left) * (bottom - top) < 0.7 * sides[0] * sides[1]:  # nothing of it, or not worth it
        return image, matrix, inverse
    there = np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]])
    back = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])
    return image[:, top:bottom, left:right], matrix @ there, back @ inverse


def _scratch(role: str, dtype: np.dtype, *shape: int) -> np.ndarray:
    """Memory of this thread, used again and again: fresh memory of this size costs as much as the resampling."""
    name, size = f"{role}_{dtype}", math.prod(shape)
    if getattr(_SCRATCH, name, np.empty(0)).size < size:
        setattr(_SCRATCH, name, np.empty(size, dtype))
    return getattr(_SCRATCH, name)[:size].reshape(shape)


@functools.lru_cache(maxsize=4)
def _grey(dtype: np.dtype, *shape: int) -> np.ndarray:
    return np.full(shape, BACKGROUND if dtype.kind == "f" else math.ceil(BACKGROUND), dtype)


def _resample(
    source: np.ndarray, matrix: np.ndarray, inverse: np.ndarray, crop_size: tuple[int, int], many_y: int, many_x: int
) -> np.ndarray:
    """What `warp` does, by OpenCV, in the type of the source (height, width, channels); in memory that is used again.

    In float equal to a few thousandths of a brightness step.
    """
    if torch.utils.data.get_worker_info() is not None:
        cv2.setNumThreads(0)  # each worker has one core
    image_height, image_width, channels = source.shape
    height, width = crop_size
    # OpenCV counts from the first pixel's middle.
    finer = np.array([[many_x], [many_y]]) * matrix[:2]
    finer[:, 2] += finer[:, :2].sum(axis=1) / 2 - 0.5
    size, shape = (width * many_x, height * many_y), (height * many_y, width * many_x, channels)
    samples = _scratch("samples", source.dtype, *shape)
    cv2.warpAffine(source, finer, size, samples, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    if _reaches_out(inverse, crop_size, (image_height, image_width)):
        outside = np.zeros((image_height, image_width), np.uint8)
        outside = cv2.warpAffine(outside, finer, size, flags=cv2.INTER_NEAREST, borderValue=255)
        cv2.copyTo(_grey(source.dtype, *shape), outside, samples)
    if many_x * many_y > 1:
        crop = _scratch("crop", source.dtype, height, width, channels)
        samples = cv2.resize(samples, (width, height), crop, interpolation=cv2.INTER_AREA)
    return samples.reshape(height, width, channels)
