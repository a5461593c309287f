"""Faces of a frame, from a detector, a file of landmarks or the frame itself (a crop); their numbers over time."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from mf2face.inference.media import Frame
from mf2face.inference.rows import PATIENCE, first_line, unescape_cell
from processing_mf2.landmarks import DetectedFace, FaceAlignmentDetector, face_in_image, missing_weights


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
    """False: a crop, whose landmarks are the template's."""

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
    def detect(self, images: Sequence[torch.Tensor]) -> list[list[DetectedFace]]: ...


class AlignedCrops:
    """Each image is one face that fills it."""

    name, fingerprint = "template", None

    def faces(self, frames: Sequence[Frame]) -> list[list[Face] | str]:
        return [[known_face(frame.pixels, None)] for frame in frames]


class DetectedFaces:
    fingerprint = None

    def __init__(self, detector: Detector | None = None, device: str = "cpu") -> None:
        self.name = "face_alignment" if detector is None else type(detector).__name__
        if detector is None:
            check_weights()
            detector = FaceAlignmentDetector(device=device)
        self.detector = detector

    def faces(self, frames: Sequence[Frame]) -> list[list[Face] | str]:
        try:
            found = self.detector.detect([frame.pixels for frame in frames])
        except (OSError, ImportError):  # its weights or its package, which every frame needs
            raise
        except Exception as error:  # a network, which raises whatever stopped it
            if len(frames) > 1:
                return [answer for frame in frames for answer in self.faces([frame])]
            return [f"the face detector fails ({type(error).__name__}: {first_line(error)})"]
        return [
            [
                Face(tuple(map(float, face.box)), float(face.score), np.asarray(face.landmarks), self.name)
                for face in faces
            ]
            for faces in found
        ]


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
        missing = [name for name in wanted if name not in fields]
        if missing:
            raise ValueError(
                f"landmarks: {self.path} has no column {missing[0]}, expected x_0 to x_67 and y_0 to y_67, in pixels"
            )
        twice = [name for name in (*wanted, "input", "frame", "success") if fields.count(name) > 1]
        if twice:
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
                    raise ValueError(
                        f"got {len(cells)} cells, expected {len(fields)}, as many as columns; is it cut off?"
                    )
                row = dict(zip(fields, cells, strict=True))
                if row.get("success") in ("0", "0.0"):
                    continue
                name = unescape_cell(row["input"]) if "input" in fields else only
                points = _points([row[column] for column in wanted])
                frame = _frame_number(row.get("frame"), first)
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


def known_face(pixels: torch.Tensor, points: np.ndarray | None) -> Face:
    """The face with these landmarks, or without any the one that fills the image."""
    source = "template" if points is None else "given"
    known: dict[str, Any] = face_in_image(*pixels.shape[1:], points, source)
    landmarks = np.asarray(known["landmarks"])
    return Face(tuple(known["box"].values()), float("nan"), landmarks, source, given=points is not None)


def check_weights() -> None:
    """face-alignment would download missing weights unasked."""
    try:
        folder, missing = missing_weights()
    except ImportError as error:
        raise OSError(str(error)) from error
    if missing:
        raise OSError(
            f"the face detector has no weights, and nothing is downloaded unasked. Put {' and '.join(missing)} into "
            f"{folder}. Without a detector: --aligned for images that one face fills (ready-aligned crops), or "
            "--landmarks FILE.csv with each face's 68 points"
        )


LEAST_OVERLAP = 0.2
"""Intersection over union; between sampled frames a head moves by up to half its width."""


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of (n, 4) and (m, 4) boxes (left, top, right, bottom): (n, m)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


class FaceTracker:
    """`follow` a video's frames in their order. The best overlapping pair is joined first; each face has one number."""

    def __init__(self) -> None:
        self.next_id = 0
        self.boxes = np.zeros((0, 4))
        self.ids: list[int] = []
        self.unseen: list[int] = []

    def follow(self, boxes: Sequence[Sequence[float]]) -> list[int]:
        found = np.asarray(boxes, np.float64).reshape(-1, 4)
        numbers = [-1] * len(found)
        scores = overlaps(self.boxes, found)
        for place in np.argsort(-scores, axis=None, kind="stable"):
            old, new = divmod(int(place), max(1, len(found)))
            if scores[old, new] < LEAST_OVERLAP:
                break
            if numbers[new] < 0 and self.ids[old] not in numbers:
                numbers[new] = self.ids[old]
        for new, number in enumerate(numbers):
            if number < 0:
                numbers[new], self.next_id = self.next_id, self.next_id + 1
        self.remember(found, numbers)
        return numbers

    def remember(self, boxes: np.ndarray, numbers: Sequence[int]) -> None:
        """A frame whose faces have their numbers already, such as one of an output that is resumed."""
        hidden = [
            (box, number, unseen + 1)
            for box, number, unseen in zip(self.boxes, self.ids, self.unseen, strict=True)
            if number not in numbers and unseen < PATIENCE
        ]
        self.boxes = np.array([*np.asarray(boxes).reshape(-1, 4), *(box for box, _, _ in hidden)]).reshape(-1, 4)
        self.ids = [*numbers, *(number for _, number, _ in hidden)]
        self.unseen = [0] * len(numbers) + [unseen for _, _, unseen in hidden]
        self.next_id = max([self.next_id, *(number + 1 for number in numbers)])
