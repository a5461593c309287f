"""Augmentation for training: random rotation, crop, flip, colours, cutout, and what cameras and light do to a picture.
It does not travel with a checkpoint."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from configuration_mf2.facs import LANDMARK_MIRROR

from .crops import GREY_WEIGHTS
from .geometry import transform_points, warp_by_pil, warp_bytes
from .image_io import BACKGROUND


try:
    import cv2
except ImportError:  # then nothing is resampled to bytes either
    cv2 = None


@dataclass(frozen=True)
class MF2Augmentation:
    """Ranges of uniform draws; 0 switches a change off.

    rotate: degrees either way. scale: relative size either way. shift: share of the crop's side either way (scale and
    shift together are the random crop). flip, cutout: probabilities. cutout_size: largest side of the hidden patch, as
    a share of the crop's. brightness, contrast, saturation: relative strength either way. grey: probability. The rest
    is drawn for some images each: gamma: its logarithm either way. light: logarithm of an uneven light (standard
    deviation). blur: largest sigma in pixels of a crop of 112. noise: largest standard deviation in grey levels.
    landmarks: a detector's error, each point's and each part's of the face, in pixels of a crop of 112.
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
    grey: float = 0.0
    gamma: float = 0.0
    light: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    landmarks: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            limit = {"rotate": 180.0, "blur": 20.0, "noise": 100.0, "landmarks": 20.0}.get(field.name, 1.0)
            if not 0 <= value <= limit:
                raise ValueError(f"{field.name}: got {value!r}, expected a number from 0 to {limit:g}")
        if self.scale == 1:
            raise ValueError("scale: got 1, at which a face could shrink to nothing; expected less than 1")

    def draw(self, seed: int, index: int) -> "AugmentationDraw":
        """The changes of one sample, equal for equal (seed, index) on every machine. An epoch is a new seed."""
        numbers = iter(np.random.default_rng((seed, index)).random(13).tolist())

        def either_way(limit: float) -> float:
            return -limit + 2 * limit * next(numbers)

        # Every value is drawn, used or not: switching one change off leaves the others as they are.
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
            jitter=self._draw_jitter(np.random.default_rng((seed, index, 2))) if self.landmarks else None,
            camera=self._draw_camera(np.random.default_rng((seed, index, 1))) if self._has_camera else None,
        )

    def _draw_jitter(self, rng: np.random.Generator) -> np.ndarray:
        """(68, 2), in shares of the crop's side."""
        parts = np.repeat(rng.standard_normal((5, 2)), (17, 10, 9, 12, 20), axis=0)  # jaw, brows, nose, eyes, mouth
        return self.landmarks / 112 * (rng.standard_normal((68, 2)) + parts) / math.sqrt(2)

    @property
    def _has_camera(self) -> bool:
        return any((self.grey, self.gamma, self.light, self.blur, self.noise))

    def _draw_camera(self, rng: np.random.Generator) -> "CameraDraw":
        happens, size = rng.random(5), rng.random(3)
        return CameraDraw(
            is_grey=bool(happens[0] < self.grey),
            gamma=math.exp(self.gamma * (2 * size[0] - 1)) if happens[1] < 0.6 else 1.0,
            light=np.exp(self.light * rng.standard_normal((3, 3))).astype(np.float32) if happens[2] < 0.4 else None,
            blur=self.blur * float(size[1]) if happens[3] < 0.35 else 0.0,
            noise=self.noise * float(size[2]) if happens[4] < 0.4 else 0.0,
            noise_seed=int(rng.integers(2**31)),
        )


SLIGHT = MF2Augmentation(
    rotate=4.0, scale=0.04, shift=0.02, brightness=0.05, contrast=0.05, saturation=0.05, cutout=0.0
)
"""For views of an image whose features are frozen: stronger changes cost AUs."""

HEAVY = MF2Augmentation(
    **{"rotate": 7.0, "scale": 0.1, "shift": 0.05, "brightness": 0.3, "contrast": 0.35, "saturation": 0.5},
    **{"grey": 0.3, "gamma": 0.5, "light": 0.25, "blur": 1.6, "noise": 9.0, "cutout": 0.35, "landmarks": 1.0},
)
"""For learning from renders what holds on photographs."""


@dataclass(frozen=True)
class CameraDraw:
    is_grey: bool
    gamma: float
    light: np.ndarray | None
    """(3, 3) factors, spread over the crop."""
    blur: float
    noise: float
    noise_seed: int

    def take(self, crop: np.ndarray) -> np.ndarray:
        """(height, width, 3), uint8 or float from 0 to 255 -> the same as float32, changed."""
        if cv2 is None:
            raise ImportError("augment: a camera's changes need OpenCV; pip install opencv-python-headless")
        height, width = crop.shape[:2]
        made = crop.astype(np.float32)
        if self.is_grey:
            made = np.repeat(cv2.cvtColor(made, cv2.COLOR_RGB2GRAY)[..., None], 3, -1)
        if self.light is not None:
            made *= cv2.resize(self.light, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
        if self.gamma != 1:
            made = 255 * (made.clip(0, 255) / 255) ** np.float32(self.gamma)
        if self.blur > 0.3:
            made = cv2.GaussianBlur(made, (0, 0), self.blur * width / 112)
        if self.noise:
            rng = np.random.Generator(np.random.SFC64(self.noise_seed))
            grains = rng.standard_normal((height, width, 1 if self.is_grey else 3), np.float32)
            made += np.float32(self.noise) * grains
        return made.clip(0, 255)


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
    """Centre (x, y), width and height of the hidden patch, as fractions of the crop."""
    camera: CameraDraw | None = None
    jitter: np.ndarray | None = None

    def cut(
        self, warp: Callable, pixels: np.ndarray, points: np.ndarray, matrix: np.ndarray, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The changed crop and its landmarks; `matrix` is that of the unchanged crop, `warp` the processor's."""
        matrix = self.matrix(height, width) @ matrix
        # In bytes, a quarter of the memory, where possible: random colour changes bear the rounding.
        in_bytes = self.changes_colours and warp is not warp_by_pil
        samples = warp_bytes(pixels, matrix, height, width) if in_bytes else None
        if samples is not None:
            crop = self.recolour_bytes(samples).transpose(2, 0, 1)
        else:
            crop = self.recolour(warp(pixels, matrix, height, width))
        if self.camera is not None:
            crop = self.camera.take(crop.transpose(1, 2, 0)).transpose(2, 0, 1)
        points = self.reorder_landmarks(transform_points(matrix, points))
        return crop, points if self.jitter is None else points + self.jitter * (width, height)

    def matrix(self, height: int, width: int) -> np.ndarray:
        """From crop pixels to pixels of the changed crop: around the middle, the flip last."""
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

    def recolour(self, crop: np.ndarray) -> np.ndarray:
        """(3, height, width) float from 0 to 255, changed in place."""
        # Brightness, then saturation (away from grey), then contrast (away from the mean grey), in one sum: each is
        # linear in the pixels, in their grey and in its mean.
        grey = np.tensordot(np.array(GREY_WEIGHTS, np.float32), crop, 1)
        constant = self.brightness * (1 - self.contrast) * float(grey.mean(dtype=np.float64))
        strength = self.brightness * self.contrast
        crop *= strength * self.saturation
        crop += grey * (strength * (1 - self.saturation)) + constant
        crop.clip(0, 255, out=crop)
        if self.patch is not None:
            rows, columns = self._hidden(*crop.shape[1:])
            crop[:, rows, columns] = BACKGROUND
        return crop

    def recolour_bytes(self, crop: np.ndarray) -> np.ndarray:
        """`recolour` of uint8 (height, width, 3) into new memory, rounded."""
        strength = self.brightness * self.contrast
        mean_grey = sum(weight * mean for weight, mean in zip(GREY_WEIGHTS, cv2.mean(crop)[:3], strict=True))
        mixing = np.empty((3, 4))
        mixing[:, :3] = np.array(GREY_WEIGHTS) * (strength * (1 - self.saturation))
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
