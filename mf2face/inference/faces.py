"""Faces of a frame, from a detector, a file of landmarks or the frame itself (a crop); their numbers over time."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from mf2face.inference.media import Frame
from mf2face.inference.rows import PATIENCE, first_line, unescape_cell
from processing_mf2.detection import DETECTORS, missing_networks, overlaps
from processing_mf2.landmarks import DetectedFace, face_in_image, missing_weights


DETECT_EVERY = 5
"""Frames of a video between two searches for faces; in the others the faces of the frame before are followed."""
_MOST_PIXELS = 1e7
"""Largest coordinate, far beyond any image."""


@dataclass(frozen=True)
class Face:
    box: tuple[float, float, float, float]
    """left, top, right, bottom"""
    score: float
    """The detector's; NaN without one."""
    landmarks: np.ndarray
    """(68, 2)"""
    source: str
    given: bool = True
    """False: a crop in MF²'s own alignment."""
    pose: tuple[float, float, float] = (float("nan"),) * 3
    """Pitch, yaw and roll in degrees; NaN where the detector tells none."""

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


class FaceSource(Protocol):
    name: str
    fingerprint: str | None
    """Hash of the file that the faces come from."""

    def faces(self, frames: Sequence[Frame]) -> list[list[Face] | str]:
        """The faces of each frame, or why it cannot be analysed."""


class Detector(Protocol):
    def detect(self, images: Sequence[np.ndarray]) -> list[list[DetectedFace]]:
        """images: (3, height, width), RGB from 0 to 255."""


class AlignedCrops:
    """Each image is one face, aligned to a template."""

    fingerprint = None

    def __init__(self, template: str = "template") -> None:
        self.name = template

    def faces(self, frames: Sequence[Frame]) -> list[list[Face] | str]:
        return [[known_face(frame.pixels, None, self.name)] for frame in frames]


class DetectedFaces:
    """Faces by a detector. In videos MediaPipe's looks for new faces every `DETECT_EVERY` frames, or if one is lost."""

    fingerprint = None

    def __init__(self, detector: Detector | str | None = None, device: str = "cpu") -> None:
        if detector is None or isinstance(detector, str):
            self.name = check_detector(detector)
            self.detector = DETECTORS[self.name](**({} if self.name == "mediapipe" else {"device": device}))
        else:
            self.name, self.detector = type(detector).__name__, detector
        self.followed: list[DetectedFace] = []
        self.video, self.frames_followed = "", 0

    def faces(self, frames: Sequence[Frame]) -> list[list[Face] | str]:
        if hasattr(self.detector, "follow"):
            return [self._next(frame) for frame in frames]
        try:
            found = self.detector.detect([frame.pixels for frame in frames])
        except (OSError, ImportError):  # its weights or its package, which every frame needs
            raise
        except Exception as error:  # a network, which raises whatever stopped it
            if len(frames) > 1:
                return [answer for frame in frames for answer in self.faces([frame])]
            return [_failure(error)]
        return [[self._face(face) for face in faces] for faces in found]

    def _next(self, frame: Frame) -> list[Face] | str:
        try:
            goes_on = frame.is_moving and frame.number and frame.input == self.video and not frame.is_cut
            known = self.followed if goes_on else []
            faces = [face for face in self.detector.follow(frame.pixels, known) if face is not None]
            self.frames_followed += 1
            if not faces or len(faces) < len(known) or self.frames_followed >= DETECT_EVERY:
                [detected], self.frames_followed = self.detector.detect([frame.pixels]), 0
                boxes = np.array([face.box for face in faces]).reshape(-1, 4)
                faces += [face for face in detected if (overlaps(boxes, face.box[None]) < LEAST_OVERLAP).all()]
        except OSError:
            raise
        except Exception as error:
            return _failure(error)
        self.video, self.followed = frame.input, faces
        return [self._face(face) for face in faces]

    def _face(self, face: DetectedFace) -> Face:
        box, pose = tuple(map(float, face.box)), face.pose or (float("nan"),) * 3
        return Face(box, float(face.score), np.asarray(face.landmarks), self.name, pose=pose)


def _failure(error: Exception) -> str:
    return f"the face detector fails ({type(error).__name__}: {first_line(error)})"


class GivenLandmarks:
    """Landmarks of a csv with `x_0..x_67` and `y_0..y_67` in pixels: our own output, py-feat's or OpenFace's.

    `input` names the image or video (not needed for a single one), by the path as given or by file name; `frame` the
    frame. All are held in memory, half a kilobyte a face. `only`: the one input, if the file has no column `input`.
    """

    name = "given"

    def __init__(self, path: str | os.PathLike, only: str | None = None) -> None:
        self.path = Path(path)
        self.points: dict[tuple[str, int], list[np.ndarray]] = {}
        try:
            if self.path.exists() and not self.path.is_file():
                raise OSError("it is no file")  # a pipe would be waited for
            with open(self.path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
                self._read(csv.reader(file, skipinitialspace=True), only)
        except (OSError, csv.Error) as error:
            raise ValueError(f"landmarks: {self.path} could not be read ({error})") from error
        if not self.points:
            raise ValueError(f"landmarks: {self.path} holds no face, expected a row for each")
        self.fingerprint = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        self.inputs = {name for name, _ in self.points}
        # Two folders may hold files of one name: such a name alone says nothing.
        counts = Counter(map(os.path.basename, self.inputs))
        self.by_file_name = {base: name for name in self.inputs if counts[base := os.path.basename(name)] == 1}

    def _read(self, reader: Iterator[list[str]], only: str | None) -> None:
        fields = [name.strip() for name in next(reader, [])]
        wanted = [f"{axis}_{point}" for axis in "xy" for point in range(68)]
        if missing := [name for name in wanted if name not in fields]:
            raise ValueError(
                f"landmarks: {self.path} has no column {missing[0]}, expected x_0 to x_67 and y_0 to y_67, in pixels"
            )
        if twice := [name for name in (*wanted, "input", "frame", "success") if fields.count(name) > 1]:
            raise ValueError(f"landmarks: {self.path} has the column {twice[0]} more than once, expected it once")
        if "input" not in fields and only is None:
            raise ValueError(f"landmarks: {self.path} has no column input, which several images need; name each row's")
        # OpenFace counts a video's frames from 1, and says of each whether its face was found.
        first = 1 if "input" not in fields and "success" in fields else 0
        for cells in reader:
            if not cells:  # an empty line
                continue
            try:
                if len(cells) != len(fields):
                    raise ValueError(f"got {len(cells)} cells, expected {len(fields)}; is the line cut off?")
                row = dict(zip(fields, cells, strict=True))
                if row.get("success") in ("0", "0.0"):
                    continue
                name = unescape_cell(row["input"]) if "input" in fields else only
                points, frame = _points([row[column] for column in wanted]), _frame_number(row.get("frame"), first)
                if not name:
                    raise ValueError("input: got an empty cell, expected the name of an image or video")
            except ValueError as error:
                raise ValueError(f"landmarks: {self.path}, line {reader.line_num}: {error}") from error
            if points is not None:
                self.points.setdefault((os.path.normpath(name), frame), []).append(points)

    def faces(self, frames: Sequence[Frame]) -> list[list[Face] | str]:
        return [self._of(frame) for frame in frames]

    def _of(self, frame: Frame) -> list[Face] | str:
        name = os.path.normpath(frame.input)
        if name not in self.inputs:
            name = self.by_file_name.get(os.path.basename(name), name)
        if name not in self.inputs:
            return f"{self.path} has no landmarks of it"
        return [known_face(frame.pixels, points) for points in self.points.get((name, frame.number), [])]


def _points(cells: Sequence[str]) -> np.ndarray | None:
    """(68, 2) of a row's cells; None if all of them are empty or NaN: no face was found."""
    try:
        values = np.array([float(cell or "nan") for cell in cells])
    except ValueError as error:
        raise ValueError(f"{error}, expected numbers") from error
    if np.isnan(values).all():
        return None
    wrong = np.flatnonzero(~(np.abs(values) < _MOST_PIXELS))
    if len(wrong):
        axis, point = divmod(int(wrong[0]), 68)
        raise ValueError(
            f"{'xy'[axis]}_{point}: got {cells[wrong[0]]!r}, expected a number of pixels, or NaN in all cells of a row "
            "without a face"
        )
    return values.astype(np.float32).reshape(2, 68).T


def _frame_number(cell: str | None, first: int) -> int:
    """Counted from 0, whatever `first` is."""
    try:
        number = float(cell) - first if cell else 0.0
    except ValueError:
        number = -1.0
    if not (number >= 0 and number.is_integer()):
        raise ValueError(f"frame: got {cell!r}, expected a whole number from {first}")
    return int(number)


def known_face(pixels: np.ndarray, points: np.ndarray | None, template: str = "template") -> Face:
    """The face with these landmarks, or without any the one that fills the image as the template says."""
    source = template if points is None else "given"
    known: dict[str, Any] = face_in_image(*pixels.shape[1:], points, source)
    landmarks = np.asarray(known["landmarks"])
    return Face(tuple(known["box"].values()), float("nan"), landmarks, source, given=source != "template")


def check_detector(name: str | None = None) -> str:
    """The detector to use: the one asked for, or the first that is set up. Nothing is downloaded unasked."""
    if name != "face_alignment" and not missing_networks():
        return "mediapipe"
    if name != "mediapipe":
        try:
            folder, missing = missing_weights()
        except ImportError as error:
            if name is not None:
                raise OSError(str(error)) from error
            missing = ["the package"]
        if not missing:
            return "face_alignment"
        if name is not None:
            raise OSError(
                f"face-alignment has no weights in {folder}, and nothing is downloaded unasked: `mf2 setup "
                f"face_alignment` fetches them, or put {' and '.join(missing)} there"
            )
    raise OSError(
        "no face detector is set up, and nothing is downloaded unasked: `mf2 setup` (or --yes) fetches one (7 MB). "
        "Without it: --aligned for images that one face fills (ready-aligned crops), or --landmarks FILE.csv with "
        "each face's 68 points"
    )


_SMALL, _BLURRED, _TURNED, _OUTSIDE = 24.0, 0.08, (35.0, 45.0), 0.1


def quality_of(pixels: np.ndarray, face: Face) -> str:
    """Marks of a face whose answer is unreliable, separated by spaces; empty if it has none.

    small: the outer corners of the eyes are less than 24 pixels apart. blurred: the mean absolute Laplacian of the grey
    face at 96 pixels is below 0.08 of its standard deviation. profile: the head is turned by more than 45 degrees, or
    tilted up or down by more than 35. cut_off: more than a tenth of the landmarks lies outside the image.
    """
    if not face.given:
        return ""
    height, width = pixels.shape[1:]
    points, marks = face.landmarks, []
    if np.linalg.norm(points[45] - points[36]) < _SMALL:
        marks.append("small")
    left, top, right, bottom = (int(value) for value in np.clip(face.box, 0, [width, height] * 2))
    crop = pixels[:, top : bottom + 1, left : right + 1].mean(0, dtype=np.float32)
    if crop.size:
        crop = cv2.resize(crop, (96, 96), interpolation=cv2.INTER_AREA)
        if np.abs(cv2.Laplacian(crop, cv2.CV_32F)).mean() < _BLURRED * crop.std():
            marks.append("blurred")
    if abs(face.pose[0]) > _TURNED[0] or abs(face.pose[1]) > _TURNED[1]:
        marks.append("profile")
    if ((points < 0) | (points > [width, height])).any(1).mean() > _OUTSIDE:
        marks.append("cut_off")
    return " ".join(marks)


LEAST_OVERLAP = 0.2
"""Intersection over union; between sampled frames a head moves by up to half its width."""


class FaceTracker:
    """`follow` a video's frames in their order. The best overlapping pair is joined first; each face has one number.
    No face is followed over a cut of the scene."""

    def __init__(self) -> None:
        self.next_id = self.scene = 0
        self.hidden: list[tuple[np.ndarray, int, int]] = []
        """(box, number, frames in which it was not seen) of every face that may come again."""

    def follow(self, boxes: Sequence[Sequence[float]], is_cut: bool = False) -> list[int]:
        found, scene = np.asarray(boxes, np.float64).reshape(-1, 4), self.scene + is_cut
        known = [] if is_cut else self.hidden
        numbers = [-1] * len(found)
        scores = overlaps(np.array([box for box, _, _ in known]).reshape(-1, 4), found)
        for place in np.argsort(-scores, axis=None, kind="stable"):
            old, new = divmod(int(place), max(1, len(found)))
            if scores[old, new] < LEAST_OVERLAP:
                break
            if numbers[new] < 0 and known[old][1] not in numbers:
                numbers[new] = known[old][1]
        for new, number in enumerate(numbers):
            if number < 0:
                numbers[new], self.next_id = self.next_id, self.next_id + 1
        self.remember(found, numbers, scene)
        return numbers

    def remember(self, boxes: Any, numbers: Sequence[int], scene: int = 0) -> None:
        """A frame whose faces have their numbers already, such as one of an output that is resumed."""
        known = [] if scene != self.scene else self.hidden
        self.hidden = [(box, number, 0) for box, number in zip(np.asarray(boxes), numbers, strict=True)]
        self.hidden += [(*face, n + 1) for *face, n in known if face[1] not in numbers and n < PATIENCE]
        self.scene = scene
        self.next_id = max([self.next_id, *(number + 1 for number in numbers)])
