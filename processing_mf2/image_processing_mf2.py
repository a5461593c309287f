"""`MF2ImageProcessor`: images to aligned, normalised crops with landmarks; settings and files are checked by name."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from transformers import BatchFeature, PilBackend, TorchvisionBackend
from transformers.image_utils import ImageInput, PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, cached_file, logging

from configuration_mf2.hub import SelfContainedMixin
from configuration_mf2.json_files import read_json

from .crops import CALLERS_OWN, Alignment, CropSize, check_names, check_settings, crop_plan, normalize_crops
from .detection import DETECTORS
from .geometry import transform_points, warp, warp_by_pil
from .image_io import MOST_PIXELS, flatten_images, is_tensor, read_image
from .landmarks import (
    TEMPLATES,
    DetectedFace,
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
