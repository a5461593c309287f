"""The 68 landmarks of a face (iBUG order) in pixels of its image: given, detected, or a template."""

import functools
import math
import os
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .geometry import STEADY_POINTS, canonical_landmarks, fit_similarity, pooled, transform_points
from .image_io import is_tensor


LandmarkSource = Literal["template", "insightface112", "ffhq", "mediapipe", "face_alignment", "given"]
NoFacePolicy = Literal["raise", "template", "skip"]
ManyFacesPolicy = Literal["largest", "all"]


@dataclass(frozen=True)
class DetectedFace:
    box: np.ndarray
    """left, top, right, bottom in pixels of the image."""
    score: float
    """0 to 1, of the box."""
    landmarks: np.ndarray
    """(68, 2)"""
    confidence: np.ndarray
    """(68,), the network's response at each landmark: low where it is hidden."""
    pose: tuple[float, float, float] | None = None
    """Pitch, yaw and roll in degrees, from a detector that measures them."""

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


def _five_points(face: np.ndarray) -> np.ndarray:
    """Centres of the eyes, tip of the nose, corners of the mouth."""
    return np.array([face[36:42].mean(0), face[42:48].mean(0), face[30], face[48], face[54]])


def _insightface_template(face: np.ndarray) -> np.ndarray:
    """insightface's 112-pixel crop (also ArcFace, Aff-Wild2's `cropped_aligned`) puts five points here."""
    target = [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
    return transform_points(fit_similarity(_five_points(face), np.array(target) / 112), face)


def _ffhq_template(face: np.ndarray) -> np.ndarray:
    """FFHQ's crop: a square around the eyes' centre, its side four eye distances or 3.6 times eyes to mouth."""
    left, right, _, *corners = _five_points(face)
    eyes, mouth = (left + right) / 2, np.mean(corners, axis=0)
    side = max(4 * np.hypot(*(right - left)), 3.6 * np.hypot(*(mouth - eyes)))
    return (face - eyes - 0.1 * (mouth - eyes)) / side + 0.5


_MEAN_FACE = canonical_landmarks(1, 1)
TEMPLATES: dict[str, np.ndarray] = {
    "template": _MEAN_FACE,
    "insightface112": _insightface_template(_MEAN_FACE),
    "ffhq": _ffhq_template(_MEAN_FACE),
}
"""Where ready-aligned crops have the mean face: (68, 2) as fractions of width and height. `template` is MF²'s own."""


def template_landmarks(height: int, width: int, template: str = "template") -> np.ndarray:
    """The mean face's in a crop that is aligned to this template: (68, 2)."""
    return TEMPLATES[template] * (width, height)


def landmarks_per_image(landmarks: Any, count: int) -> list[Any]:
    """The landmarks given for each of `count` images, unchecked, or `None`."""
    if landmarks is None:
        return [None] * count
    if isinstance(landmarks, np.ndarray) or is_tensor(landmarks):
        # For one image, the axis of images is optional.
        landmarks = [landmarks] if count == 1 and landmarks.ndim != 3 else list(landmarks)
    elif isinstance(landmarks, list | tuple) and count == 1 and len(landmarks) != 1:
        landmarks = [landmarks]
    if not isinstance(landmarks, list | tuple) or len(landmarks) != count:
        got = f"{len(landmarks)} sets" if isinstance(landmarks, list | tuple) else type(landmarks).__name__
        raise ValueError(f"landmarks: got {got}, expected {count}, one (68, 2) set (or None) for each image")
    return list(landmarks)


def check_landmarks(landmarks: Any, height: int, width: int, name: str) -> np.ndarray:
    """(68, 2) float64, if they can be those of a face in an image of this size."""
    if is_tensor(landmarks):
        landmarks = landmarks.detach().float().cpu()
    try:
        points = np.asarray(landmarks, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: got {type(landmarks).__name__}, expected (68, 2) numbers ({error})") from error
    if points.shape != (68, 2):
        raise ValueError(f"{name}: got {points.shape}, expected (68, 2), x and y of the 68 iBUG points in pixels")
    if not np.isfinite(points).all():
        bad = np.flatnonzero(~np.isfinite(points).all(axis=1)).tolist()
        raise ValueError(f"{name}: points {bad} are not finite; leave out landmarks that are unknown")
    size = np.array([width, height])
    low, high = points.min(axis=0), points.max(axis=0)
    if (low < -size / 2).any() or (high > 1.5 * size).any():
        raise ValueError(
            f"{name}: got x from {low[0]:.1f} to {high[0]:.1f} and y from {low[1]:.1f} to {high[1]:.1f}, expected "
            f"pixels of their image, which has {width} x {height}"
        )
    # Spread of the points along their principal axes.
    x, y = (steady := points[list(STEADY_POINTS)]).T - steady.mean(axis=0)[:, None]
    both, apart = (x @ x + y @ y) / len(x), math.hypot(x @ x - y @ y, 2 * (x @ y)) / len(x)
    longest, shortest = math.sqrt((both + apart) / 2), math.sqrt(max(both - apart, 0) / 2)
    if longest < 1 or shortest < 0.02 * longest:
        raise ValueError(
            f"{name}: the points spread over {longest:.2f} by {shortest:.2f} pixels, one spot or one line; expected a "
            "face. Landmarks are pixels, not fractions of the image"
        )
    return points


_MOST_REVERSED = 0.2
"""Share of the eyes' distance from the mouth: in a profile the hidden eye's points may lie beyond the other's."""


def check_orientation(points: np.ndarray, name: str) -> None:
    """Raises if left and right are exchanged, as in a mirror."""
    first_eye, second_eye, mouth = (points[part].mean(axis=0) for part in (slice(36, 42), slice(42, 48), slice(48, 68)))
    across, down = second_eye - first_eye, mouth - (first_eye + second_eye) / 2
    # Twice the triangle's signed area: positive in images, where y points down.
    if across[0] * down[1] - across[1] * down[0] < -_MOST_REVERSED * (down @ down):
        raise ValueError(
            f"{name}: got a mirrored face, expected points 36 to 41 on the left eye of an upright image; left and "
            "right, or x and y, seem to be exchanged. When flipping an image, reorder the points too"
        )


def choose_faces(
    faces: Sequence[DetectedFace], *, on_no_face: NoFacePolicy, on_many_faces: ManyFacesPolicy, name: str
) -> list[DetectedFace] | None:
    """The faces of one image to use: none if it is to be skipped, `None` if the template is to replace them."""
    if not faces:
        if on_no_face == "raise":
            raise ValueError(
                f"{name}: no face was found; give its landmarks, or on_no_face='skip' (leave the image out) or "
                "'template' (take it as a ready-aligned crop)"
            )
        return None if on_no_face == "template" else []
    if on_many_faces == "all":
        return list(faces)
    return [max(faces, key=lambda face: face.area)]


def face_in_image(
    height: int, width: int, points: np.ndarray | None, source: LandmarkSource, found: DetectedFace | None = None
) -> dict[str, Any]:
    """Box and landmarks of a face in pixels of its image, with their sources: plain numbers, by name.

    The box is the detector's, else the bounds of the given landmarks; a template's is the whole image.
    """
    if points is None:
        points = template_landmarks(height, width, source if source in TEMPLATES else "template")
        box, box_source = np.array([0, 0, width, height]), "image"
    elif found is not None:
        box, box_source = found.box, source
    else:
        box, box_source = np.concatenate([points.min(axis=0), points.max(axis=0)]), "landmarks"
    face = {
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, box), strict=True)),
        "box_source": box_source,
        "landmarks": np.asarray(points, dtype=np.float64).tolist(),
        "landmark_source": source,
    }
    return face if found is None else {**face, "box_score": float(found.score)}


class FaceAlignmentDetector:
    """Faces and their landmarks by the face-alignment package (S3FD boxes, 2DFAN4 landmarks).

    Its networks are loaded at the first image and shared by all detectors of equal settings. compile: worth its start
    only for long runs. flip_input: averages over the mirrored face, at twice the time. detection_side: boxes are
    detected in a copy no larger than this, landmarks in the full image. max_batch_size: faces a forward pass.
    """

    def __init__(
        self,
        device: str = "cpu",
        *,
        compile: bool = False,
        flip_input: bool = True,
        detection_side: int = 640,
        max_batch_size: int = 8,
        min_score: float = 0.5,
    ):
        self.settings = (str(device), compile, flip_input, max_batch_size, min_score)
        self.detection_side = detection_side

    @property
    def network(self) -> Any:
        with _LOADING:
            return _load_network(*self.settings)

    def detect(self, images: Sequence[Any]) -> list[list[DetectedFace]]:
        """(3, height, width) images from 0 to 255, of any sizes, arrays or tensors -> the faces of each."""
        import torch  # by this detector alone

        images = [image.cpu().numpy() if is_tensor(image) else image for image in images]
        copies, scales = zip(*(self._detection_copy(image) for image in images), strict=True) if images else ((), ())
        boxes: list[Sequence[np.ndarray]] = [()] * len(images)
        for group in _groups_of_equal_shape(copies):
            found = self.network.face_detector.detect_from_batch(torch.stack([copies[i] for i in group]))
            for index, image_boxes in zip(group, found, strict=True):
                boxes[index] = image_boxes
        return [
            self._landmarks(image, image_boxes, scale)
            for image, image_boxes, scale in zip(images, boxes, scales, strict=True)
        ]

    def _detection_copy(self, image: np.ndarray) -> tuple[Any, float]:
        import torch

        height, width = image.shape[1:]
        scale = min(1.0, self.detection_side / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        if scale < 1 and height * width > _LARGE:
            image = pooled(image, max(1, int(0.5 / scale)))
        copy = torch.tensor(image, dtype=torch.float32)
        if scale < 1:
            copy = torch.nn.functional.interpolate(copy[None], size, mode="bilinear", antialias=True)[0]
        return copy, scale

    def _landmarks(self, image: np.ndarray, boxes: Sequence[np.ndarray], scale: float) -> list[DetectedFace]:
        if len(boxes) == 0:
            return []
        boxes = [np.array([*(np.asarray(box[:4]) / scale), box[4]]) for box in boxes]
        pixels = np.ascontiguousarray(image.round().astype(np.uint8).transpose(1, 2, 0))
        points, confidence, _ = self.network.get_landmarks_from_image(
            pixels, detected_faces=boxes, return_bboxes=True, return_landmark_score=True
        )
        faces = [
            # face-alignment truncates to whole pixels; half a pixel leads back to the pixel's centre.
            DetectedFace(box[:4], float(box[4]), np.asarray(face_points, dtype=np.float64) + 0.5, np.asarray(scores))
            for box, face_points, scores in zip(boxes, points, confidence, strict=True)
        ]
        return sorted(faces, key=lambda face: -face.area)


_LARGE = 2**24  # pixels; as floats of all colours that is 200 MB


def _groups_of_equal_shape(images: Sequence[Any]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(index)
    return list(groups.values())


_LOADING = threading.Lock()


def missing_weights() -> tuple[str, list[str]]:
    """The folder that face-alignment reads its weights from, and the URLs of those that are not there."""
    try:  # here: the package takes seconds to import
        import torch
        from face_alignment import api
        from face_alignment.detection.sfd import sfd_detector
    except ImportError as error:
        raise ImportError(
            f"faces are detected by the face-alignment package ({error}): pip install face-alignment"
        ) from error
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    urls = [sfd_detector.models_urls["s3fd"], api.models_urls["2DFAN-4"]]
    return folder, [url for url in urls if not os.path.isfile(os.path.join(folder, os.path.basename(url)))]


@functools.lru_cache(maxsize=4)
def _load_network(device: str, compile: bool, flip_input: bool, max_batch_size: int, min_score: float) -> Any:
    folder, missing = missing_weights()
    import face_alignment

    try:
        return face_alignment.FaceAlignment(
            face_alignment.LandmarksType.TWO_D,
            **{"device": device, "compile": compile, "flip_input": flip_input, "max_batch_size": max_batch_size},
            face_detector_kwargs={"filter_threshold": min_score},
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        advice = (
            f"fetch {' and '.join(missing)} and put them there" if missing else "delete its files if they are damaged"
        )
        raise OSError(
            f"face-alignment could not load its weights ({error}) from {folder}; without access to its server, {advice}"
        ) from error
