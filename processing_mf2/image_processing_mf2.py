"""What is wrong with a processor's files, by file and field, where the libraries that read them do not say it."""

import difflib
import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, PilBackend, TorchvisionBackend
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, cached_file, logging

from configuration_mf2.hub import SelfContainedMixin
from configuration_mf2.json_files import read_json

from .geometry import (
    AugmentationDraw,
    MF2Augmentation,
    alignment_matrix,
    resize_matrix,
    resolve_augmentation,
    transform_points,
    warp,
    warp_by_pil,
    warp_bytes,
)
from .image_io import MOST_PIXELS, flatten_images, read_image
from .landmarks import (
    DetectedFace,
    FaceAlignmentDetector,
    LandmarkSource,
    ManyFacesPolicy,
    NoFacePolicy,
    check_landmarks,
    check_orientation,
    choose_faces,
    face_in_image,
    landmarks_per_image,
    template_landmarks,
)


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


def named_error(source: Any, error: Exception, where: dict[str, Any]) -> Exception:
    """The error of loading a processor from `source` as one that names file and field; a sentence stays as it is."""
    if isinstance(error, ValueError | TypeError) and _SENTENCE.match(str(error)):
        return type(error)(f"{source}: {error}") if type(error) in (ValueError, TypeError) else error
    found = next(_wrong_fields(source, where), None)
    if found is None:
        found = f"processor_config.json, tokenizer_config.json or tokenizer.json: {type(error).__name__}: {error}"
    return ValueError(f"{source}: {found}; download the file again, or save the processor anew with save_pretrained")


def _wrong_fields(source: Any, where: dict[str, Any]) -> Iterator[str]:
    where = {
        name: where[name] for name in ("revision", "token", "cache_dir", "subfolder") if where.get(name) is not None
    }
    for file, fields in _FIELDS.items():
        try:
            path = cached_file(source, file, local_files_only=True, **where)
        except OSError:  # there is none
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


class MF2ImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_align (`bool`): bring the face to the canonical one by rotation, scale and shift; `False`: resize the image.
    landmark_source (`str`): where the landmarks of an image come from if none are given. `"template"`: the image is a
        ready-aligned crop, with the mean face's landmarks; `"face_alignment"`: they are found by the face-alignment
        package, which fetches its weights at the first use; `"given"`: from nowhere, they are required.
    on_no_face, on_many_faces (`str`): what follows when `"face_alignment"` finds none (`"raise"`, `"template"`,
        `"skip"`) or several (`"largest"`, `"all"`).
    face_alignment_kwargs (`dict`): settings of [`FaceAlignmentDetector`], such as its device.
    max_pixels (`int`): a larger image is refused before it is decoded (see `read_image`).
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
        if not wrong:
            levels = values if isinstance(values, tuple) else (values,)
            low = 1e-6 if name == "image_std" else -_MOST_LEVEL
            wrong = not low <= min(levels) <= max(levels) <= _MOST_LEVEL
        if wrong and (settings.get("do_normalize") or values is not None):
            above = " above 0" if name == "image_std" else ""
            raise ValueError(
                f"{name}: got {values!r:.80}, expected a number{above} up to {_MOST_LEVEL:g}, or three of red, green, "
                "blue"
            )
    return resolved


_MOST_LEVEL = 1e6


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


logger = logging.get_logger(__name__)


# Stands in a processor's file, but is none of its settings.
_SAVED_BESIDE = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}
_OF_A_CALL = {"landmarks", "augment", "augment_seed", "sample_index"}


class _AlignedCrops(SelfContainedMixin):
    """What both image processors share: all but the resampling.

    `image_processor(images, landmarks)` -> `pixel_values` (batch, 3, height, width) and `landmarks` (batch, 68, 2).
    Landmarks are always in pixels of the image they come with: given ones in those of the input (as seen, EXIF rotation
    applied), returned ones in those of the crop; x and y count from the image's upper left edge, so the first pixel's
    middle is at 0.5. Given landmarks win over `landmark_source`.
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
        # Before transformers stumbles over them, and without a name.
        usual = {name: getattr(self, name, None) for name in known}
        check_settings({**usual, **{name: value for name, value in kwargs.items() if value is not None}})
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except OSError:
            raise
        except Exception as error:
            raise named_error(pretrained_model_name_or_path, error, kwargs) from error

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From a file's content. Of what only the caller decides the file says nothing; what it holds besides settings
        is kept, as transformers does it, unless it looks like a misspelt one."""
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
        augment: MF2Augmentation | dict | bool | None = None,
        augment_seed: int = 0,
        sample_index: Sequence[int] | None = None,
        **kwargs: Unpack[MF2ImageProcessorKwargs],
    ) -> BatchFeature:
        r"""
        images: one or many PIL images, paths, bytes, arrays or tensors (see `read_image`).
        landmarks: (68, 2) for one image, (images, 68, 2), or a list that has `None` for images without.
        augment: for training: `True`, ranges, or an [`MF2Augmentation`]. What it draws depends only on `augment_seed`
            and the image's `sample_index` (its place in the call unless given), so a new epoch wants a new seed.
        """
        names = set(self.valid_kwargs.__annotations__)
        check_names(kwargs, names | _OF_A_CALL, type(self).__name__)
        usual = {name: getattr(self, name, None) for name in names}
        settings = check_settings({**usual, **{name: value for name, value in kwargs.items() if value is not None}})
        return self._crops(
            images,
            landmarks=landmarks,
            augmentation=resolve_augmentation(augment),
            augment_seed=augment_seed,
            sample_index=sample_index,
            **settings,
        )

    def _crops(
        self,
        images: Any,
        *,
        landmarks: Any,
        augmentation: MF2Augmentation | None,
        augment_seed: int,
        sample_index: Sequence[int] | None,
        size: SizeDict,
        do_align: bool,
        landmark_source: LandmarkSource,
        on_no_face: NoFacePolicy,
        on_many_faces: ManyFacesPolicy,
        face_alignment_kwargs: dict | None,
        max_pixels: int,
        allow_url: bool,
        timeout: float | None,
        return_landmark_source: bool,
        return_faces: bool,
        device: str | torch.device | None,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        images = flatten_images(images)
        if not images:
            raise ValueError("images: got an empty list, expected at least one image")
        places = [f"[{index}]" for index in range(len(images))] if len(images) > 1 else [""]
        given = landmarks_per_image(landmarks, len(images))
        draws = _draws(augmentation, augment_seed, sample_index, len(images))
        rows: list[list[_Row]] = [[] for _ in images]
        searched: dict[int, torch.Tensor] = {}  # only these images are kept, to be searched for faces in one batch

        def cut(
            index: int, pixels: torch.Tensor, points: np.ndarray | None, source: str, found: DetectedFace | None = None
        ) -> None:
            crop, crop_points = self._cut(pixels, points, size.height, size.width, do_align, draws[index])
            face = face_in_image(*pixels.shape[1:], points, source, found) if return_faces else None
            rows[index].append(_Row(crop, crop_points, source, index, face))

        for index, (image, place) in enumerate(zip(images, places, strict=True)):
            limits = {"max_pixels": max_pixels, "allow_url": allow_url, "timeout": timeout}
            pixels = read_image(image, name=f"images{place}", **limits).to(device)
            if given[index] is not None:
                points = check_landmarks(given[index], *pixels.shape[1:], f"landmarks{place}")
                check_orientation(points, f"landmarks{place}")
                cut(index, pixels, points, "given")
            elif landmark_source == "face_alignment":
                searched[index] = pixels
            elif landmark_source == "template":
                _warn_if_no_crop(pixels, size)
                cut(index, pixels, None, "template")
            else:
                raise ValueError(f"landmarks{place}: got none, but landmark_source='given' requires them")
        found = (
            FaceAlignmentDetector(**(face_alignment_kwargs or {})).detect(list(searched.values())) if searched else ()
        )
        for (index, pixels), faces in zip(searched.items(), found, strict=True):
            chosen = choose_faces(
                faces, on_no_face=on_no_face, on_many_faces=on_many_faces, name=f"images{places[index]}"
            )
            if chosen is None:
                cut(index, pixels, None, "template")
            for face in chosen or ():
                points = check_landmarks(face.landmarks, *pixels.shape[1:], f"landmarks found in images{places[index]}")
                cut(index, pixels, points, "face_alignment", face)

        flat = [row for image_rows in rows for row in image_rows]
        batch = self._to_batch(flat, size, return_landmark_source, return_tensors, **kwargs)
        if return_faces:
            batch["faces"] = [row.face for row in flat]
        return batch

    def _cut(
        self,
        pixels: torch.Tensor,
        points: np.ndarray | None,
        height: int,
        width: int,
        do_align: bool,
        draw: AugmentationDraw | None,
    ) -> tuple[torch.Tensor, np.ndarray]:
        """The crop and the landmarks in it. Whatever moves is one matrix, so that pixels are resampled once."""
        matrix = resize_matrix(*pixels.shape[1:], height, width)
        if points is None:
            points = template_landmarks(*pixels.shape[1:])
        elif do_align:
            matrix = alignment_matrix(points, height, width)
        if draw is None:
            return self.warp(pixels, matrix, height, width), transform_points(matrix, points)
        matrix = draw.matrix(height, width) @ matrix
        # In bytes, a quarter of the memory, where that is possible: colours that change at random bear the rounding.
        samples = self.warp_bytes(pixels, matrix, height, width) if draw.changes_colours else None
        if samples is not None:
            crop = torch.from_numpy(draw.recolour_bytes(samples)).permute(2, 0, 1)
        else:
            crop = draw.recolour(self.warp(pixels, matrix, height, width))
        return crop, draw.reorder_landmarks(transform_points(matrix, points))

    def _to_batch(
        self,
        rows: list["_Row"],
        size: SizeDict,
        return_landmark_source: bool,
        return_tensors: Any,
        *,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        **unused: Any,
    ) -> BatchFeature:
        crops = [row.crop for row in rows]
        device = crops[0].device if crops else None
        pixel_values = torch.empty(len(crops), 3, size.height, size.width, device=device)
        if do_normalize:
            # In pixels' own range, so that a crop is changed twice and not three times.
            share = 1.0 / rescale_factor if do_rescale else 1.0
            mean, std = (
                (torch.tensor(values, device=device) * share).view(-1, 1, 1) for values in (image_mean, image_std)
            )
        # Crop by crop, and at once where it belongs: a crop fits into the processor's cache, a batch does not.
        for place, crop in zip(pixel_values, crops, strict=True):
            place.copy_(crop)
            if do_normalize:
                place.sub_(mean).div_(std)
            elif do_rescale:
                place.mul_(rescale_factor)
        points = np.array([row.points for row in rows], dtype=np.float32).reshape(-1, 68, 2)
        data = {"pixel_values": pixel_values, "landmarks": torch.from_numpy(points).to(pixel_values.device)}
        if return_landmark_source:
            data["image_index"] = torch.tensor([row.image_index for row in rows], dtype=torch.int64)
        if return_tensors in ("np", TensorType.NUMPY):
            data = {name: tensor.cpu().numpy() for name, tensor in data.items()}
        if return_landmark_source:
            data["landmark_source"] = [row.source for row in rows]
        return BatchFeature(data)


class MF2ImageProcessor(_AlignedCrops, TorchvisionBackend):
    __doc__ = _AlignedCrops.__doc__

    warp = staticmethod(warp)
    warp_bytes = staticmethod(warp_bytes)


class MF2ImageProcessorPil(_AlignedCrops, PilBackend):
    """As [`MF2ImageProcessor`], by PIL alone: where there is neither torchvision nor OpenCV. Crops differ by 0.01."""

    warp = staticmethod(warp_by_pil)

    @staticmethod
    def warp_bytes(*unused: Any) -> None:
        return None


@dataclass(frozen=True)
class _Row:
    crop: torch.Tensor
    points: np.ndarray
    source: str
    image_index: int
    face: dict[str, Any] | None


def _draws(
    augmentation: MF2Augmentation | None, seed: int, sample_index: Sequence[int] | None, count: int
) -> list[AugmentationDraw | None]:
    if augmentation is None:
        return [None] * count
    indexes = range(count) if sample_index is None else [int(index) for index in sample_index]
    if len(indexes) != count:
        raise ValueError(f"sample_index: got {len(indexes)} indexes, expected {count}, one for each image")
    return [augmentation.draw(seed, index) for index in indexes]


def _warn_if_no_crop(pixels: torch.Tensor, size: SizeDict) -> None:
    height, width = pixels.shape[1:]
    if not 0.8 < (width / height) / (size.width / size.height) < 1.25:
        logger.warning_once(
            "An image came without landmarks and is taken as a ready-aligned crop, but its sides differ much from the "
            "crop's. If it is a photograph, give landmarks or set landmark_source='face_alignment'."
        )


__all__ = [
    "CALLERS_OWN",
    "MF2ImageProcessor",
    "MF2ImageProcessorKwargs",
    "MF2ImageProcessorPil",
    "check_choices",
    "check_names",
    "check_settings",
    "named_error",
]
