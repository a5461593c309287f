"""Landmarks of whole corpora: detected once, in batches, and kept in one file; videos cut into frames."""

import errno
import json
import logging
import os
import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mf2face.data.corpora.label_files import CorpusError, check_folder
from mf2face.files import write_whole
from processing_mf2.detection import MediaPipeDetector, missing_networks
from processing_mf2.landmarks import DetectedFace, FaceAlignmentDetector, check_landmarks


logger = logging.getLogger(__name__)

CACHE_NAME = "mf2_landmarks.sqlite"
_TABLE = """CREATE TABLE IF NOT EXISTS faces (image TEXT, detector TEXT, stamp TEXT, landmarks BLOB, confidence BLOB,
box BLOB, score REAL, checksum INTEGER, PRIMARY KEY (image, detector)) WITHOUT ROWID"""
_COLUMNS = ("image", "detector", "stamp", "landmarks", "confidence", "box", "score", "checksum")
_REMOVE = "It is damaged, or another program's: remove it, and the landmarks are detected again"


@dataclass(frozen=True)
class CachedFace:
    """The largest face of an image: landmarks (68, 2) in pixels of the upright image, confidence (68,), box (4,)."""

    landmarks: np.ndarray
    confidence: np.ndarray
    box: np.ndarray
    score: float


class LandmarkCache:
    """The largest face of each image below `root`; each batch is on the disk before the next begins.

    detector: `FaceAlignmentDetector` unless given. file: `mf2_landmarks.sqlite` in `root` unless given. An image is
    detected again if its size or date changed, if the detector's name or settings differ, or if the entry is damaged.
    """

    def __init__(
        self,
        root: str | Path,
        detector: Any = None,
        *,
        file: str | Path | None = None,
        batch_size: int = 32,
        **settings: Any,
    ) -> None:
        self.root = check_folder(Path(root), "the images", "Name the folder that the images lie in")
        self.detector = FaceAlignmentDetector(max_batch_size=batch_size, **settings) if detector is None else detector
        identity = {"detector": type(self.detector).__name__, "settings": settings}
        self.name, self.batch_size = json.dumps(identity, sort_keys=True, default=str), batch_size
        self.file = self.root / CACHE_NAME if file is None else Path(file)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.store = sqlite3.connect(self.file, timeout=60)
            self._open_table()
        except (sqlite3.Error, OSError) as error:
            advice = "Give another file for it (--landmark_cache), where there is room and the right to write"
            raise self._error(error, advice) from error

    def _open_table(self) -> None:
        self.store.execute(_TABLE)
        columns = [row[1] for row in self.store.execute("PRAGMA table_info(faces)")]
        if columns == list(_COLUMNS[:-1]):  # of a version without checksums, whose entries stay good
            self.store.execute("ALTER TABLE faces ADD COLUMN checksum INTEGER")
        elif columns != list(_COLUMNS):
            expected = f"a table of faces with the columns {', '.join(_COLUMNS)}"
            raise CorpusError(self.file, f"the columns {', '.join(columns)}", expected, _REMOVE)

    def _error(self, error: Exception, advice: str) -> CorpusError:
        """advice: for what SQLite calls operational: a full disk, a lock, a lack of rights. Anything else is damage."""
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        return CorpusError(self.file, str(error), "a file of landmarks", _REMOVE if damaged else advice)

    def __enter__(self) -> "LandmarkCache":
        return self

    def __exit__(self, *raised: object) -> None:
        self.store.close()

    def faces(self, images: Sequence[str], pixels: Sequence[np.ndarray]) -> list[CachedFace | None]:
        """The largest face of each image (a path below `root`), None if there is none."""
        stamps = [self._stamp(image) for image in images]
        known = [self._known(image, stamp) for image, stamp in zip(images, stamps, strict=True)]
        unknown = [place for place, face in enumerate(known) if face is None]
        for start in range(0, len(unknown), self.batch_size):
            places = unknown[start : start + self.batch_size]
            batch = [pixels[place] for place in places]
            faces = [_largest(faces, image) for faces, image in zip(self.detector.detect(batch), batch, strict=True)]
            self._keep([(images[place], stamps[place]) for place in places], faces)
            for place, face in zip(places, faces, strict=True):
                known[place] = (face,)
        return [face for (face,) in known]

    def _stamp(self, image: str) -> str:
        try:
            status = os.stat(self.root / image)
        except OSError as error:
            advice = "It was there when labels were read: fetch it again"
            raise CorpusError(self.root / image, error.strerror, "an image", advice) from error
        return f"{status.st_size} {status.st_mtime_ns}"

    def _known(self, image: str, stamp: str) -> tuple[CachedFace | None] | None:
        """(the face,), (None,) if there is none in the image, None if the image has to be looked at."""
        query = f"SELECT {', '.join(_COLUMNS[2:])} FROM faces WHERE image = ? AND detector = ?"
        try:
            row = self.store.execute(query, (_as_key(image), self.name)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._error(error, "Another process may write it: wait for it, or end it") from error
        if row is None or row[0] != stamp:
            return None
        *entry, checksum = row
        try:
            if checksum is not None and checksum != _checksum(image, *entry):
                raise ValueError("bytes of another checksum")
            return (None if entry[1] is None else _as_face(*entry[1:]),)
        except (ValueError, TypeError) as error:
            expected = f"the landmarks of {image} as they were written"
            logger.warning("landmark cache: %s: got %s, expected %s; detected again", self.file, error, expected)
            return None

    def _keep(self, images: Sequence[tuple[str, str]], faces: Sequence[CachedFace | None]) -> None:
        rows = []
        for (image, stamp), face in zip(images, faces, strict=True):
            entry = (stamp, None, None, None, None)
            if face is not None:
                entry = (stamp, face.landmarks.tobytes(), face.confidence.tobytes(), face.box.tobytes(), face.score)
            rows.append((_as_key(image), self.name, *entry, _checksum(image, *entry)))
        try:
            with self.store:  # all of a batch or nothing, and on the disk
                self.store.executemany("INSERT OR REPLACE INTO faces VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            message = f"landmark cache: {self.file} cannot be written ({error}). Make room and start again"
            raise OSError(errno.ENOSPC, message) from error
        except sqlite3.DatabaseError as error:
            raise self._error(error, _REMOVE) from error


def _as_key(image: str) -> str:
    """A file name may hold bytes that are no UTF-8; the file of landmarks may not."""
    return image.encode("utf-8", "backslashreplace").decode()


def _checksum(*entry: Any) -> int:
    return zlib.crc32(repr(entry).encode("utf-8", "backslashreplace"))


def _as_face(points: bytes, confidence: bytes, box: bytes, score: float) -> CachedFace:
    numbers = [np.frombuffer(blob, np.float32) for blob in (points, confidence, box)]
    for name, values, size in zip(("landmarks", "confidence", "box"), numbers, (136, 68, 4), strict=True):
        if values.shape != (size,) or not np.isfinite(values).all():
            raise ValueError(f"{name} of {values.size} numbers, some of them not finite or not {size}")
    return CachedFace(numbers[0].reshape(68, 2), *numbers[1:], float(score))


def _largest(faces: Sequence[DetectedFace], image: np.ndarray) -> CachedFace | None:
    if not faces:
        return None
    face = max(faces, key=lambda one: one.area)
    try:
        points = check_landmarks(face.landmarks, *image.shape[1:], "landmarks")
    except ValueError:  # what the network gave has no face's shape
        return None
    numbers = (np.asarray(values, np.float32) for values in (points, face.confidence, face.box))
    return CachedFace(*numbers, float(face.score))


def cut_video(video: str | Path, folder: str | Path, quality: int = 95) -> int:
    """Writes `00001.jpg` and so on, as the readers of corpora expect them, and keeps those that are there; how many."""
    video, folder, number = Path(video), Path(folder), 0
    if not video.is_file():
        raise CorpusError(video, "nothing there", "a video", "Name a file that OpenCV can read")
    folder.mkdir(parents=True, exist_ok=True)
    reader = cv2.VideoCapture(str(video))
    try:
        while (frame := reader.read())[0]:
            number += 1
            target = folder / f"{number:05d}.jpg"
            if not target.exists():
                _, encoded = cv2.imencode(".jpg", frame[1], [cv2.IMWRITE_JPEG_QUALITY, quality])
                write_whole(target, encoded.tobytes())
    finally:
        reader.release()
    if not number:
        advice = "It may be damaged, or OpenCV lacks its codec: convert it to mp4"
        raise CorpusError(video, "no frame", "a video", advice)
    return number


def open_cache(root: str | Path, detector: str | None = None, device: str = "cpu", **where: Any) -> LandmarkCache:
    """The cache of a named detector: mediapipe if its networks are there, else face_alignment, on `device`."""
    name = detector or ("face_alignment" if missing_networks() else "mediapipe")
    which = {"detector": MediaPipeDetector()} if name == "mediapipe" else {"device": device}
    return LandmarkCache(root, **which, **where)


__all__ = ["CachedFace", "LandmarkCache", "cut_video", "open_cache"]
