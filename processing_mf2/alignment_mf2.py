"""Geometry of a crop: the matrix that brings a face to the canonical one, and the resampling that follows a matrix.

Pixel coordinates are continuous, x to the right and y down: the image spans 0 to its width, so the first pixel's middle
is at 0.5 and a flip takes x to width - x.
"""

import functools
import threading

import numpy as np
import torch
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
    # Image pixels per crop pixel, along the crop's two axes.
    step_x, step_y = np.hypot(inverse[0, 0], inverse[1, 0]), np.hypot(inverse[0, 1], inverse[1, 1])
    # A very large shrink is done in two averages, so that the work is bounded by the image's size.
    pool = max(1, int(min(step_x, step_y) / 2))
    many_x, many_y = max(1, int(np.ceil(step_x / pool - 1e-6))), max(1, int(np.ceil(step_y / pool - 1e-6)))

    image_height, image_width = image.shape[1:]
    if cv2 is not None and pool == 1 and image.device.type == "cpu" and image.shape[0] in (1, 3):
        if not image.requires_grad and max(image_height, image_width, many_y * height, many_x * width) < _CV2_SIDE:
            return _warp_on_cpu(image, matrix, height, width, many_y, many_x)
    corners = transform_points(inverse, np.array([[0, 0], [width, 0], [0, height], [width, height]]))
    left, top = np.floor(corners.min(0)).astype(int) - 2 * pool
    right, bottom = np.ceil(corners.max(0)).astype(int) + 2 * pool
    reaches_out = min(left, top) < 0 or right > image_width or bottom > image_height
    left, right = np.clip([left, right], 0, image_width)
    top, bottom = np.clip([top, bottom], 0, image_height)
    if left >= right or top >= bottom:
        return torch.full((image.shape[0], height, width), BACKGROUND, device=image.device)
    region = image[None, :, top:bottom, left:right].float()
    if pool > 1:
        region = F.avg_pool2d(region, pool, ceil_mode=True, count_include_pad=False)

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


_CV2_SIDE = 32767
_SCRATCH = threading.local()


def _scratch(role: str, *shape: int) -> np.ndarray:
    """Memory of this thread, used again and again: fresh memory of this size costs as much as the resampling."""
    size = int(np.prod(shape))
    if getattr(_SCRATCH, role, np.empty(0)).size < size:
        setattr(_SCRATCH, role, np.empty(size, np.float32))
    return getattr(_SCRATCH, role)[:size].reshape(shape)


@functools.lru_cache(maxsize=4)
def _grey(*shape: int) -> np.ndarray:
    return np.full(shape, BACKGROUND, np.float32)


def _warp_on_cpu(
    image: torch.Tensor, matrix: np.ndarray, height: int, width: int, many_y: int, many_x: int
) -> torch.Tensor:
    """What `warp` does, by OpenCV: in float, equal to a few thousandths of a brightness step."""
    if torch.utils.data.get_worker_info() is not None:
        cv2.setNumThreads(0)  # each worker has one core
    channels, image_height, image_width = image.shape
    source = _scratch("source", image_height, image_width, channels)
    torch.from_numpy(source).copy_(image.permute(1, 2, 0))
    # OpenCV counts from the first pixel's middle.
    to_middle, back = np.eye(3), np.eye(3)
    to_middle[:2, 2], back[:2, 2] = 0.5, -0.5
    finer = (back @ np.diag([many_x, many_y, 1.0]) @ matrix @ to_middle)[:2]
    size, shape = (width * many_x, height * many_y), (height * many_y, width * many_x, channels)
    samples = _scratch("samples", *shape)
    cv2.warpAffine(source, finer, size, samples, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    corners = transform_points(np.linalg.inv(matrix), np.array([[0, 0], [width, 0], [0, height], [width, height]]))
    if corners.min() < 0 or (corners.max(0) > (image_width, image_height)).any():
        outside = np.zeros((image_height, image_width), np.uint8)
        outside = cv2.warpAffine(outside, finer, size, flags=cv2.INTER_NEAREST, borderValue=255)
        cv2.copyTo(_grey(*shape), outside, samples)
    if many_x * many_y > 1:
        crop = _scratch("crop", height, width, channels)
        samples = cv2.resize(samples, (width, height), crop, interpolation=cv2.INTER_AREA)
    crop = torch.from_numpy(samples.reshape(height, width, channels)).permute(2, 0, 1)
    return crop.clone(memory_format=torch.contiguous_format)
