"""Images to aligned, normalised crops; the landmarks follow every change of geometry."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, PilBackend, TorchvisionBackend
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import Unpack
from transformers.utils import TensorType, logging

from configuration_mf2.hub_mf2 import SelfContainedMixin

from .alignment_mf2 import alignment_matrix, resize_matrix, transform_points, warp, warp_by_pil, warp_bytes
from .augmentation_mf2 import AugmentationDraw, MF2Augmentation, resolve_augmentation
from .image_reading_mf2 import MOST_PIXELS, flatten_images, read_image
from .image_settings_mf2 import CALLERS_OWN, MF2ImageProcessorKwargs, check_names, check_settings
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
from .processor_files_mf2 import named_error


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
        with open(json_file, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))

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


__all__ = ["MF2ImageProcessor", "MF2ImageProcessorPil"]
