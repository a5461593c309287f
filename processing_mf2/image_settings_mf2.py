"""The settings of an image processor: which there are, and that each has a type and a value that works."""

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .landmarks_mf2 import FaceAlignmentDetector, LandmarkSource, ManyFacesPolicy, NoFacePolicy


class MF2ImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_align (`bool`): bring the face to the canonical one by rotation, scale and shift; `False`: resize the image.
    landmark_source (`str`): where the landmarks of an image come from if none are given. `"template"`: the image is a
        ready-aligned crop, with the mean face's landmarks; `"face_alignment"`: they are found by the face-alignment
        package, which fetches its weights at the first use; `"given"`: from nowhere, they are required.
    on_no_face, on_many_faces (`str`): what follows when `"face_alignment"` finds none (`"raise"`, `"template"`,
        `"skip"`) or several (`"largest"`, `"all"`).
    face_alignment_kwargs (`dict`): settings of [`FaceAlignmentDetector`], such as its device.
    max_pixels (`int`): a larger image is refused before it is decoded (see [`read_image`]).
    allow_url (`bool`), timeout (`float`): fetch images whose address is given, within so many seconds.
    return_landmark_source (`bool`): also return `landmark_source` (`"given"`, `"face_alignment"` or `"template"`) and
        `image_index` (which image it was cut from) of each row. Off by default: a model takes neither.
    return_faces (`bool`): also return `faces`, a dict a row: where in its image, as seen, the face lies.
    """

    do_align: bool | None
    landmark_source: LandmarkSource | None
    on_no_face: NoFacePolicy | None
    on_many_faces: ManyFacesPolicy | None
    face_alignment_kwargs: dict | None
    max_pixels: int | None
    allow_url: bool | None
    timeout: float | None
    return_landmark_source: bool | None
    return_faces: bool | None


# The choices that transformers offers and this processor has only one answer to.
_FIXED = {
    **{"do_resize": True, "do_convert_rgb": True, "do_center_crop": False, "do_pad": False},
    **{"resample": PILImageResampling.BILINEAR, "data_format": "channels_first"},
}
_CHOICES = {
    "landmark_source": LandmarkSource.__args__,
    "on_no_face": NoFacePolicy.__args__,
    "on_many_faces": ManyFacesPolicy.__args__,
}
_SWITCHES = ("do_align", "do_rescale", "do_normalize", "allow_url", "return_landmark_source", "return_faces")
_DETECTOR_SETTINGS = set(inspect.signature(FaceAlignmentDetector).parameters)

CALLERS_OWN = ("allow_url", "max_pixels", "timeout")
"""What only the caller decides: a checkpoint neither opens the network nor raises the limit of memory."""


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
            raise ValueError(
                f"{name}: got {settings[name]!r:.80}, expected {only!r}: the processor always cuts RGB crops of `size`"
            )
    check_choices(settings)
    for name in _SWITCHES:
        if settings.get(name) is not None and type(settings[name]) is not bool:
            raise ValueError(f"{name}: got {settings[name]!r:.80}, expected True or False")
    if type(settings["max_pixels"]) is not int or settings["max_pixels"] < 1:
        raise ValueError(f"max_pixels: got {settings['max_pixels']!r:.80}, expected a whole number from 1")
    _check_detector(settings.get("face_alignment_kwargs"))
    resolved = {**settings, "size": _size(settings.get("size"))}
    if settings.get("do_rescale") and not (_is_number(settings["rescale_factor"]) and settings["rescale_factor"]):
        raise ValueError(
            f"rescale_factor: got {settings['rescale_factor']!r:.80}, expected a finite number that is not 0, such as "
            "1/255"
        )
    for name in ("image_mean", "image_std"):
        values = settings.get(name)
        if isinstance(values, list | tuple):
            resolved[name] = values = tuple(values)
        wrong = not (
            _is_number(values) or (isinstance(values, tuple) and len(values) == 3 and all(map(_is_number, values)))
        )
        if name == "image_std" and not wrong:
            wrong = min(values if isinstance(values, tuple) else (values,)) <= 0
        if wrong and (settings.get("do_normalize") or values is not None):
            above = " above 0" if name == "image_std" else ""
            raise ValueError(
                f"{name}: got {values!r:.80}, expected a finite number{above}, or three of red, green, blue"
            )
    return resolved


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _size(size: Any) -> SizeDict:
    given, size = size, dict(size) if isinstance(size, SizeDict) else size
    if isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    elif not isinstance(size, Mapping):
        size = {"height": size, "width": size}
    height, width = size.get("height"), size.get("width")
    if set(size) != {"height", "width"} or not all(
        type(side) is int and 0 < side <= _LARGEST for side in (height, width)
    ):
        raise ValueError(
            f"size: got height {height!r:.40} and width {width!r:.40}, expected whole numbers from 1 to {_LARGEST}: "
            "{'height': 224, 'width': 224}, or 224 for both"
        )
    return given if isinstance(given, SizeDict) else SizeDict(height=height, width=width)


_LARGEST = 4096  # pixels a side of a crop


def _check_detector(settings: Any) -> None:
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"face_alignment_kwargs: got {settings!r:.80}, expected a dict, such as {{'device': 'cpu'}}")
    check_names(settings or (), _DETECTOR_SETTINGS, "face_alignment_kwargs")


__all__ = ["CALLERS_OWN", "MF2ImageProcessorKwargs", "check_choices", "check_names", "check_settings"]
