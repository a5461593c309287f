"""Geometry of a crop: the matrix that brings a face to the canonical one, and the resampling that follows a matrix.

Pixel coordinates are continuous, x to the right and y down: the image spans 0 to its width, so the first pixel's middle
is at 0.5 and a flip takes x to width - x.
"""

import dataclasses
import functools
import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from configuration_mf2.facs import CANONICAL_FACE, LANDMARK_MIRROR

from .image_io import BACKGROUND


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


try:
    import cv2
except ImportError:  # then nothing is resampled to bytes either
    cv2 = None

_GREY_WEIGHTS = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class MF2Augmentation:
    """Ranges to draw from, each evenly; 0 switches a change off.

    rotate: degrees either way. scale: relative size either way. shift: of the crop's side, either way (scale and shift
    together are the random crop). flip, cutout: probabilities. cutout_size: largest side of the hidden patch, of the
    crop's. brightness, contrast, saturation: relative strength either way.
    """

    rotate: float = 10.0
    scale: float = 0.1
    shift: float = 0.05
    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    cutout: float = 0.3
    cutout_size: float = 0.3

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            limit = 180.0 if field.name == "rotate" else 1.0
            if not 0 <= value <= limit:
                raise ValueError(f"{field.name}: got {value!r}, expected a number from 0 to {limit:g}")
        if self.scale == 1:
            raise ValueError("scale: got 1, at which a face could shrink to nothing; expected less than 1")

    def draw(self, seed: int, index: int) -> "AugmentationDraw":
        """What happens to one sample: equal for equal (seed, index), on every machine. An epoch is a new seed."""
        rng = np.random.default_rng((seed, index))

        # All at once, for a call of numpy costs more than a number.
        numbers = iter(rng.random(13).tolist())

        def either_way(limit: float) -> float:
            return -limit + 2 * limit * next(numbers)

        # Every value is drawn, used or not, so that switching one change off leaves the others as they are.
        angle, scale = math.radians(either_way(self.rotate)), 1 + either_way(self.scale)
        shift_x, shift_y = either_way(self.shift), either_way(self.shift)
        flips, hides = next(numbers) < self.flip, next(numbers) < self.cutout
        brightness, contrast = 1 + either_way(self.brightness), 1 + either_way(self.contrast)
        saturation = 1 + either_way(self.saturation)
        smallest = self.cutout_size / 3
        patch_width, patch_height = (smallest + (self.cutout_size - smallest) * next(numbers) for _ in range(2))
        patch = (next(numbers), next(numbers), patch_width, patch_height)
        return AugmentationDraw(
            **{"angle": angle, "scale": scale, "shift_x": shift_x, "shift_y": shift_y, "flips": flips},
            **{"brightness": brightness, "contrast": contrast, "saturation": saturation},
            patch=patch if hides else None,
        )


SLIGHT = MF2Augmentation(
    rotate=4.0, scale=0.04, shift=0.02, brightness=0.05, contrast=0.05, saturation=0.05, cutout=0.0
)
"""For views of an image whose features are frozen: what is hidden or recoloured more than this costs AUs."""


@dataclass(frozen=True)
class AugmentationDraw:
    angle: float
    scale: float
    shift_x: float
    shift_y: float
    flips: bool
    brightness: float
    contrast: float
    saturation: float
    patch: tuple[float, float, float, float] | None
    """x and y of the hidden patch's middle, its width and height, as fractions of the crop."""

    def matrix(self, height: int, width: int) -> np.ndarray:
        """Crop pixels -> changed crop's pixels: around the middle, and the flip last."""
        cos, sin = self.scale * np.cos(self.angle), self.scale * np.sin(self.angle)
        middle_x, middle_y = width / 2, height / 2
        turn = np.array(
            [
                [cos, -sin, middle_x - cos * middle_x + sin * middle_y + self.shift_x * width],
                [sin, cos, middle_y - sin * middle_x - cos * middle_y + self.shift_y * height],
                [0, 0, 1],
            ]
        )
        return np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]]) @ turn if self.flips else turn

    def reorder_landmarks(self, landmarks: np.ndarray) -> np.ndarray:
        """In a flipped face the left eye's corner is the right eye's."""
        return landmarks[list(LANDMARK_MIRROR)] if self.flips else landmarks

    @property
    def changes_colours(self) -> bool:
        return self.patch is not None or (self.brightness, self.contrast, self.saturation) != (1, 1, 1)

    def recolour(self, crop: torch.Tensor) -> torch.Tensor:
        """(3, height, width) float from 0 to 255, changed in place."""
        # Brightness, then saturation (away from grey), then contrast (away from the mean grey), in one sum: each is
        # linear in the pixels, in their grey and in its mean.
        weights = torch.tensor(_GREY_WEIGHTS, device=crop.device)
        grey = (weights @ crop.reshape(3, -1)).view(1, *crop.shape[1:])
        constant = self.brightness * (1 - self.contrast) * grey.mean()
        strength = self.brightness * self.contrast
        crop *= strength * self.saturation
        crop += grey.mul_(strength * (1 - self.saturation)).add_(constant)
        crop.clamp_(0, 255)
        if self.patch is not None:
            rows, columns = self._hidden(*crop.shape[1:])
            crop[:, rows, columns] = BACKGROUND
        return crop

    def recolour_bytes(self, crop: np.ndarray) -> np.ndarray:
        """The same of uint8 (height, width, 3), to new memory; rounded to whole brightness steps."""
        strength = self.brightness * self.contrast
        mean_grey = sum(weight * mean for weight, mean in zip(_GREY_WEIGHTS, cv2.mean(crop)[:3], strict=True))
        mixing = np.empty((3, 4))
        mixing[:, :3] = np.array(_GREY_WEIGHTS) * (strength * (1 - self.saturation))
        mixing[:, :3] += np.eye(3) * (strength * self.saturation)
        mixing[:, 3] = self.brightness * (1 - self.contrast) * mean_grey
        crop = cv2.transform(crop, mixing)
        if self.patch is not None:
            rows, columns = self._hidden(*crop.shape[:2])
            crop[rows, columns] = math.ceil(BACKGROUND)
        return crop

    def _hidden(self, height: int, width: int) -> tuple[slice, slice]:
        x, y, patch_width, patch_height = self.patch
        left, right = round((x - patch_width / 2) * width), round((x + patch_width / 2) * width)
        top, bottom = round((y - patch_height / 2) * height), round((y + patch_height / 2) * height)
        return slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))


def resolve_augmentation(augment: Any) -> MF2Augmentation | None:
    """`None` or `False`: no change; `True`: the default ranges; a dict: the default ranges but for those it names."""
    if augment is None or augment is False:
        return None
    if augment is True:
        return MF2Augmentation()
    if isinstance(augment, MF2Augmentation):
        return augment
    if isinstance(augment, dict):
        names = [field.name for field in dataclasses.fields(MF2Augmentation)]
        unknown = sorted(set(augment) - set(names))
        if unknown:
            raise ValueError(f"augment: got {unknown}, expected names among {names}")
        return MF2Augmentation(**augment)
    raise TypeError(f"augment: got {type(augment).__name__}, expected True, a dict of ranges or an MF2Augmentation")
