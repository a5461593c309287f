"""Faces, landmarks and head pose by MediaPipe's networks, run by OpenCV on the CPU.

Boxes by BlazeFace (full range, then short range where it finds none), 468 mesh points by the face mesh; 68 of them are
the iBUG landmarks. The networks are files that `mf2 setup` puts into `network_folder()`; nothing is downloaded here.
"""

import hashlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .image_io import is_tensor
from .landmarks import DetectedFace, FaceAlignmentDetector


NETWORKS = {
    "face_detection_full_range.tflite": "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    "face_detection_short_range.tflite": "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
    "face_landmark.tflite": "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493",
}
"""SHA-256 by file name."""
MESH_TO_68 = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),  # jaw line
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),  # brows
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),  # nose
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),  # outer lips
    *(78, 82, 13, 312, 308, 317, 14, 87),  # inner lips
)
_OVERLAP = 0.3
"""Boxes of one face: intersection over union of MediaPipe's non-maximum suppression."""
_ATTEMPTS = (("full", 1.0), ("short", 1.0), ("short", 1.5))
"""Network and margin around the image until a face is found: the full range misses faces that fill the frame."""
_FAR, _LEAST_TILE = 1 / 6, 320
"""Faces that span less of the image's longer side have neighbours that the network no longer sees: then halves of the
image are searched as well, and halves of these, down to a side of so many pixels."""
_MESH_SIDE = 192
_PITCH = 4.0
"""Degrees that the network's mesh of a head that looks straight ahead leans down, by 240 rendered (synthetic) heads."""
_CROP = 1.5
"""Side of the mesh network's crop over the box's longer side."""


def network_folder() -> Path:
    """Where `mf2 setup` puts the networks: `mf2/mediapipe` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mf2" / "mediapipe"


def missing_networks() -> list[str]:
    """Names of the networks that are not in the folder."""
    return [name for name in NETWORKS if not (network_folder() / name).is_file()]


_Box = tuple[float, np.ndarray, np.ndarray]
"""Score, box and the two eyes (2, 2)."""


class MediaPipeDetector:
    """Faces of images of any size. `detect` looks for them, `follow` places known ones anew in the next frame.

    min_score: least score of a box. min_presence: least answer of the mesh network to "is there a face?".
    """

    def __init__(self, *, min_score: float = 0.5, min_presence: float = 0.5):
        self.min_score, self.min_presence = min_score, min_presence

    def detect(self, images: Sequence[Any]) -> list[list[DetectedFace]]:
        """(3, height, width) images from 0 to 255, arrays or tensors -> the faces of each, largest first."""
        return [self._detect(_image_bytes(image)) for image in images]

    def follow(self, image: Any, faces: Sequence[DetectedFace]) -> list[DetectedFace | None]:
        """The faces of the frame before, placed in this one; None where a face is lost."""
        pixels = _image_bytes(image)
        crops = [
            (*_box_center(face.box), max(_box_size(face.box)) * _CROP, _eye_angle(face.landmarks)) for face in faces
        ]
        return [self._mesh(pixels, crop, face.score) for crop, face in zip(crops, faces, strict=True)]

    def _detect(self, pixels: np.ndarray) -> list[DetectedFace]:
        for range, margin in _ATTEMPTS:
            if faces := self._faces(pixels, _find_boxes(pixels, range, margin, self.min_score)):
                break
        parts, side = 1, max(pixels.shape[:2])
        while (not faces or max(_box_size(faces[0].box)) < _FAR * side) and side / 2 >= _LEAST_TILE:
            parts, side = 2 * parts, side / 2
            boxes = [(face.score, face.box, face.landmarks[[36, 45]]) for face in faces]
            for corner, tile in _tiles(pixels, parts):
                found = _find_boxes(tile, "full", 1.0, self.min_score)
                boxes += [(score, box + np.tile(corner, 2), eyes + corner) for score, box, eyes in found]
            faces = self._faces(pixels, sorted(boxes, key=lambda box: -box[0]))
        return faces

    def _faces(self, pixels: np.ndarray, boxes: Sequence[_Box]) -> list[DetectedFace]:
        """One face for each box that the mesh confirms, largest first; boxes: best first."""
        faces: list[DetectedFace] = []
        for score, box, ((x0, y0), (x1, y1)) in boxes:
            crop = (*_box_center(box), max(_box_size(box)) * _CROP, math.atan2(y1 - y0, x1 - x0))
            face = self._mesh(pixels, crop, score)
            known = np.array([other.box for other in faces]).reshape(-1, 4)
            if face is not None and (overlaps(known, face.box[None]) < _OVERLAP).all():
                faces.append(face)
        return sorted(faces, key=lambda face: -face.area)

    def _mesh(self, pixels: np.ndarray, crop: tuple[float, float, float, float], score: float) -> DetectedFace | None:
        """crop: x and y of its center, side, angle in radians."""
        x, y, side, angle = crop
        if not (math.isfinite(x + y + side + angle) and side >= 4):
            return None
        face, to_image = _turned_crop(pixels, x, y, side, angle)
        presence, points = _run_network("face_landmark.tflite", cv2.dnn.blobFromImage(face, 1 / 255))
        presence = 1 / (1 + math.exp(-float(np.clip(presence.flat[0], -50, 50))))
        if presence < self.min_presence:
            return None
        mesh = points.reshape(468, 3).astype(np.float64)
        mesh = np.column_stack([mesh[:, :2] @ to_image[:, :2].T + to_image[:, 2], mesh[:, 2] * side / _MESH_SIDE])
        low, high = mesh[:, :2].min(0), mesh[:, :2].max(0)
        landmarks = mesh[list(MESH_TO_68), :2]
        pitch, yaw, roll = head_pose(mesh)
        pose = (pitch + _PITCH, yaw, roll)
        return DetectedFace(np.concatenate([low, high]), score, landmarks, np.full(68, presence), pose=pose)


def head_pose(mesh: np.ndarray) -> tuple[float, float, float]:
    """Pitch, yaw and roll in degrees of a (468, 3) mesh in pixels (y down, z away from the camera).

    Zero looks straight into the camera; pitch grows as the head looks up, yaw as it turns to the image's right, roll
    as it leans clockwise in the image.
    """
    across = mesh[[263, 454]].mean(0) - mesh[[33, 234]].mean(0)  # from the image's left to its right
    down = mesh[152] - mesh[10]
    x = across / np.linalg.norm(across)
    y = down - (down @ x) * x
    y /= np.linalg.norm(y)
    z = np.cross(x, y)
    pitch, yaw, roll = math.atan2(-y[2], z[2]), math.asin(np.clip(x[2], -1, 1)), math.atan2(x[1], x[0])
    return math.degrees(pitch), math.degrees(yaw), math.degrees(roll)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of (n, 4) and (m, 4) boxes (left, top, right, bottom): (n, m)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)


def _tiles(pixels: np.ndarray, parts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Corner and pixels of overlapping squares, each 1.25 of the longer side's share."""
    height, width = pixels.shape[:2]
    side = math.ceil(1.25 * max(height, width) / parts)
    for top in _tile_starts(height, side):
        for left in _tile_starts(width, side):
            yield np.array([left, top]), pixels[top : top + side, left : left + side]


def _tile_starts(length: int, side: int) -> list[int]:
    count = max(1, math.ceil((length - 0.2 * side) / (0.8 * side)))
    return np.linspace(0, max(0, length - side), count).astype(int).tolist()


def _find_boxes(pixels: np.ndarray, range: str, margin: float, min_score: float) -> list[_Box]:
    """Best first, in pixels of the image."""
    side, anchors = _box_anchors(range)
    height, width = pixels.shape[:2]
    scale = margin * max(height, width) / side
    size = max(1, round(width / scale)), max(1, round(height / scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    small = cv2.copyMakeBorder(small, top, side - size[1] - top, left, side - size[0] - left, cv2.BORDER_CONSTANT)
    blob = cv2.dnn.blobFromImage(small, 1 / 127.5, mean=(127.5, 127.5, 127.5))
    logits, values = (output[0] for output in _run_network(f"face_detection_{range}_range.tflite", blob))
    good = np.flatnonzero(logits[:, 0] > math.log(min_score / (1 - min_score)))
    good = good[np.isfinite(values[good]).all(1)]
    scores = 1 / (1 + np.exp(-np.clip(logits[good, 0].astype(np.float64), -50, 50)))
    points = values[good].reshape(len(good), 8, 2).astype(np.float64)
    points[:, 1] /= 2  # half the box's size
    points[:, [0, 2, 3]] += anchors[good][:, None]
    center, half = points[:, 0], points[:, 1]
    boxes = np.concatenate([center - half, center + half], axis=1)
    shared = overlaps(boxes, boxes) >= _OVERLAP
    border, faces, left_over = np.array([left, top]), [], (half > 0).all(1)
    for best in np.argsort(-scores, kind="stable"):
        if left_over[best]:
            # MediaPipe's suppression: the mean of all boxes of one face, weighted by their scores.
            same = np.flatnonzero(shared[best])
            weights = scores[same] / scores[same].sum()
            box = (weights @ boxes[same] - np.tile(border, 2)) * scale
            eyes = (np.tensordot(weights, points[same][:, 2:4], 1) - border) * scale
            faces.append((float(scores[best]), box, eyes))
            left_over &= ~shared[best]
    return faces


@lru_cache
def _box_anchors(range: str) -> tuple[int, np.ndarray]:
    """Side of the network's input, and the center of each of its boxes in pixels of it."""
    side, strides = (192, (4,)) if range == "full" else (128, (8, 8, 16, 16, 16, 16, 16, 16))
    centers = []
    for stride in dict.fromkeys(strides):
        grid = (np.stack(np.mgrid[: side // stride, : side // stride][::-1], -1).reshape(-1, 2) + 0.5) * stride
        centers.append(np.repeat(grid, strides.count(stride), axis=0))
    return side, np.concatenate(centers)


def _turned_crop(pixels: np.ndarray, x: float, y: float, side: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The turned square of an image as the mesh network's input, and the (2, 3) map from its pixels to the image's."""
    scale, half = side / _MESH_SIDE, _MESH_SIDE / 2
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    to_image = np.array([[cos, -sin, x - half * (cos - sin)], [sin, cos, y - half * (sin + cos)]])
    warp, step = to_image.copy(), int(scale)
    if step > 1:  # block means first: interpolation alone would skip pixels
        low = np.clip(np.floor([x - 0.75 * side, y - 0.75 * side]), 0, None).astype(int)
        region = pixels[low[1] : math.ceil(y + 0.75 * side), low[0] : math.ceil(x + 0.75 * side)]
        height, width = region.shape[0] // step, region.shape[1] // step
        if height and width:
            pixels = cv2.resize(region[: height * step, : width * step], (width, height), interpolation=cv2.INTER_AREA)
            warp[:, 2] -= low
            warp /= step
    warp[:, 2] += 0.5 * (warp[:, 0] + warp[:, 1]) - 0.5  # OpenCV puts a pixel's center at a whole number
    face = cv2.warpAffine(pixels, warp, (_MESH_SIDE, _MESH_SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return face, to_image


_NETWORKS = threading.local()
"""OpenCV's networks hold their activations: each thread has its own."""


def _run_network(name: str, blob: np.ndarray) -> list[np.ndarray]:
    """Outputs in the order of their shapes' sizes: scores before boxes, presence before points."""
    path = network_folder() / name
    networks = _NETWORKS.__dict__.setdefault("networks", {})
    if path not in networks:
        networks[path] = _read_network(path)
    network = networks[path]
    network.setInput(blob)
    return sorted(network.forward(network.getUnconnectedOutLayersNames()), key=lambda output: output.size)


def _read_network(path: Path) -> cv2.dnn.Net:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OSError(f"{path} could not be read ({error}); `mf2 setup` puts it there") from error
    got, expected = hashlib.sha256(content).hexdigest(), NETWORKS[path.name]
    if got != expected:
        raise OSError(f"{path}: got SHA-256 {got[:12]}..., expected {expected[:12]}...; run `mf2 setup` again")
    # OpenCV's newer engine drops these networks' second output.
    return cv2.dnn.readNetFromTFLite(str(path), engine=cv2.dnn.ENGINE_CLASSIC)


def _image_bytes(image: Any) -> np.ndarray:
    """(3, height, width) -> (height, width, 3) bytes."""
    image = image.cpu().numpy() if is_tensor(image) else image
    if image.dtype != np.uint8:
        image = image.round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def _box_center(box: np.ndarray) -> tuple[float, float]:
    return float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2


def _box_size(box: np.ndarray) -> tuple[float, float]:
    return float(box[2] - box[0]), float(box[3] - box[1])


def _eye_angle(landmarks: np.ndarray) -> float:
    x, y = landmarks[45] - landmarks[36]
    return math.atan2(y, x)


DETECTORS = {"face_alignment": FaceAlignmentDetector, "mediapipe": MediaPipeDetector}
"""`landmark_source` -> its detector."""


__all__ = [
    "DETECTORS",
    "NETWORKS",
    "MediaPipeDetector",
    "head_pose",
    "missing_networks",
    "network_folder",
    "overlaps",
]
