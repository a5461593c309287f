"""Faces of an image as aligned, normalised crops, and the settings of that."""

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from .geometry import alignment_matrix, resize_matrix
from .landmarks import (
    FaceAlignmentDetector,
    LandmarkSource,
    ManyFacesPolicy,
    NoFacePolicy,
    template_landmarks,
)


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
