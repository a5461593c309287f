"""Images to aligned, normalised crops; the landmarks follow every change of geometry."""

import difflib
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging

from configuration_mf2.hub_mf2 import SelfContainedMixin

from .alignment_mf2 import alignment_matrix, resize_matrix, transform_points, warp, warp_bytes
from .augmentation_mf2 import AugmentationDraw, MF2Augmentation, resolve_augmentation
from .image_reading_mf2 import MOST_PIXELS, flatten_images, read_image
from .landmarks_mf2 import (
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


logger = logging.get_logger(__name__)


class MF2ImagesKwargs(ImagesKwargs, total=False):
    r"""
    do_align (`bool`): bring the face to the canonical one by rotation, scale and shift; `False`: resize the image.
    landmark_source (`str`): where the landmarks of an image come from if none are given. `"template"`: the image is a
        ready-aligned crop, with the mean face's landmarks; `"face_alignment"`: they are found by the face-alignment
        package, which fetches its weights at the first use; `"given"`: from nowhere, they are required.
    on_no_face, on_many_faces (`str`): what follows when `"face_alignment"` finds none (`"raise"`, `"template"`,
        `"skip"`) or several (`"largest"`, `"all"`).
    face_alignment_kwargs (`dict`): settings of [`FaceAlignmentDetector`], such as its device.
    max_pixels (`int`): a larger image is refused before it is decoded.
    allow_url (`bool`): fetch images whose address is given.
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
_DETECTOR_SETTINGS = set(inspect.signature(FaceAlignmentDetector).parameters)
_OF_A_CALL = {"landmarks", "augment", "augment_seed", "sample_index"}
_SAVED_BESIDE = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}


class MF2ImageProcessor(SelfContainedMixin, TorchvisionBackend):
    """`image_processor(images, landmarks)` -> `pixel_values` (batch, 3, height, width) and `landmarks` (batch, 68, 2).

    Landmarks are always in pixels of the image they come with: given ones in those of the input (as seen, EXIF rotation
    applied), returned ones in those of the crop; x and y count from the image's upper left edge, so the first pixel's
    middle is at 0.5. Given landmarks win over `landmark_source`.
    """

    hub_auto_classes = ("AutoImageProcessor",)
    valid_kwargs = MF2ImagesKwargs
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
    return_landmark_source = False
    return_faces = False

    def __init__(self, **kwargs: Unpack[MF2ImagesKwargs]) -> None:
        names = set(self.valid_kwargs.__annotations__)
        _check_names(set(kwargs) - _SAVED_BESIDE, names, type(self).__name__)
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in names})

    def preprocess(
        self,
        images: ImageInput,
        landmarks: Any = None,
        *,
        augment: MF2Augmentation | dict | bool | None = None,
        augment_seed: int = 0,
        sample_index: Sequence[int] | None = None,
        **kwargs: Unpack[MF2ImagesKwargs],
    ) -> BatchFeature:
        r"""
        images: one or many PIL images, paths, bytes, arrays or tensors (see `read_image`).
        landmarks: (68, 2) for one image, (images, 68, 2), or a list that has `None` for images without.
        augment: for training: `True`, ranges, or an [`MF2Augmentation`]. What it draws depends only on `augment_seed`
            and the image's `sample_index` (its place in the call unless given), so a new epoch wants a new seed.
        """
        _check_names(kwargs, {*self.valid_kwargs.__annotations__, *_OF_A_CALL}, type(self).__name__)
        check_choices({name: kwargs[name] for name in _CHOICES if kwargs.get(name) is not None})
        call = {"landmarks": landmarks, "augmentation": resolve_augmentation(augment)}
        call |= {"augment_seed": augment_seed, "sample_index": sample_index}
        return super().preprocess(images, image_like_kwargs=call, **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Unchanged: `read_image` opens files, and checks them before it decodes them."""
        return image_url_or_urls

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        for name, only in _FIXED.items():
            if kwargs.get(name) not in (None, only):
                raise ValueError(
                    f"{name}: got {kwargs[name]!r}, expected {only!r}: the processor always cuts RGB crops of `size`"
                )
        check_choices({name: kwargs.get(name) for name in _CHOICES})
        size = kwargs.get("size")
        height, width = (size.height, size.width) if size else (None, None)
        if not all(type(side) is int and side > 0 for side in (height, width)):
            raise ValueError(
                f"size: got height {height} and width {width}, expected whole numbers from 1: "
                "{'height': 224, 'width': 224}, or 224 for both"
            )
        _check_names(kwargs.get("face_alignment_kwargs") or (), _DETECTOR_SETTINGS, "face_alignment_kwargs")
        super()._validate_preprocess_kwargs(**kwargs)

    def _preprocess_image_like_inputs(
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
            crop, crop_points = _cut(pixels, points, size.height, size.width, do_align, draws[index])
            face = face_in_image(*pixels.shape[1:], points, source, found) if return_faces else None
            rows[index].append(_Row(crop, crop_points, source, index, face))

        for index, (image, place) in enumerate(zip(images, places, strict=True)):
            pixels = read_image(image, name=f"images{place}", max_pixels=max_pixels, allow_url=allow_url).to(device)
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
        changes = {"do_rescale": do_rescale, "rescale_factor": rescale_factor, "do_normalize": do_normalize}
        changes |= {"image_mean": image_mean, "image_std": image_std}
        device = crops[0].device if crops else None
        pixel_values = torch.empty(len(crops), 3, size.height, size.width, device=device)
        if do_normalize:
            mean, std, _ = self._fuse_mean_std_and_rescale_factor(**changes, device=device)
            mean, std = (torch.as_tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
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


def _check_names(given: Iterable[str], known: set[str], owner: str) -> None:
    for name in sorted(set(given) - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TypeError(f"{owner}: got an unknown setting {name!r}; {hint}Settings: {sorted(known)}")


def check_choices(chosen: dict[str, Any]) -> None:
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name}: got {value!r}, expected one of {list(_CHOICES[name])}")


@dataclass(frozen=True)
class _Row:
    crop: torch.Tensor
    points: np.ndarray
    source: str
    image_index: int
    face: dict[str, Any] | None


def _cut(
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
        return warp(pixels, matrix, height, width), transform_points(matrix, points)
    matrix = draw.matrix(height, width) @ matrix
    # In bytes, a quarter of the memory, where that is possible: colours that change at random bear the rounding.
    samples = warp_bytes(pixels, matrix, height, width) if draw.changes_colours else None
    if samples is not None:
        crop = torch.from_numpy(draw.recolour_bytes(samples)).permute(2, 0, 1)
    else:
        crop = draw.recolour(warp(pixels, matrix, height, width))
    return crop, draw.reorder_landmarks(transform_points(matrix, points))


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


__all__ = ["MF2ImageProcessor", "MF2ImagesKwargs"]
